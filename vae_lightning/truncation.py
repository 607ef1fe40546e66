"""Draw categories from logits, with temperature, top-k and top-p."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truncation:
    """Temperature, top-k and top-p truncation of a categorical distribution.

    All of them make samples more typical and less diverse.

    Args:
        temperature: Divisor of the logits.
        top_k: Number of most probable categories to draw from; None for all.
        top_p: Draw from the most probable categories that together have this probability.

    Raises:
        ValueError: If a number is out of range.

    References:
        Holtzman et al. (2020), The curious case of neural text degeneration (top-p),
        https://arxiv.org/abs/1904.09751
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if self.top_k is not None and (self.top_k < 1 or self.top_k % 1):
            raise ValueError(f"top_k must be a positive integer, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the truncated and renormalized probabilities of logits (..., K).

        Example:
            >>> Truncation(top_p=0.6).probabilities(torch.tensor([0.5, 0.3, 0.2]).log())
            tensor([0.6250, 0.3750, 0.0000])
        """
        highest = logits.amax(-1, keepdim=True)
        smallest = torch.finfo(logits.dtype).tiny  # 0 / 0 would be NaN
        temperature = max(self.temperature, smallest)
        probabilities = ((logits - highest) / temperature).softmax(-1)
        top_p = None if self.top_p == 1 else self.top_p  # rounded sums would leave out some
        if self.top_k is None and top_p is None:
            return probabilities
        ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered[..., self.top_k :] = 0
        if top_p is not None:
            # A category is kept if those before it have not reached the probability yet.
            ordered[ordered.cumsum(-1) - ordered >= top_p * ordered.sum(-1, keepdim=True)] = 0
        kept = torch.zeros_like(probabilities).scatter(-1, places, ordered)
        return kept / kept.sum(-1, keepdim=True)


def draw_categories(
    logits: Tensor, uniform: Tensor, truncation: Truncation | None = None
) -> Tensor:
    """Draw categories by inverting the cumulative distribution function.

    Args:
        logits: (B, K).
        uniform: Uniform numbers in [0, 1), (B,), in float64 where the device has it.
        truncation: How to truncate the distribution.

    Returns:
        int64, (B,).

    Example:
        >>> draw_categories(torch.zeros(3, 4), torch.tensor([0.0, 0.3, 0.99])).tolist()
        [0, 1, 3]
    """
    truncation = truncation or Truncation()
    below = truncation.probabilities(logits.to(uniform.dtype)).cumsum(-1)
    total = below[:, -1:]
    # Right, so that a category of probability 0 is never the first above.
    drawn = torch.searchsorted(below, uniform[:, None] * total, right=True)
    # Where the product has been rounded up to the total: the last category that has a probability.
    return torch.minimum(drawn, (below < total).sum(1, keepdim=True))[:, 0]
