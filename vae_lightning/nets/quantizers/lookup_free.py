"""Lookup-free quantization (Yu et al., 2023), https://arxiv.org/abs/2310.05737."""

import torch
from torch import Tensor, nn

from vae_lightning.distributed import join_rows
from vae_lightning.nets.quantizers.base import Quantized, Quantizer, squared_distance

_MOST_BITS = 20


class LFQ(Quantizer):
    """Replace each of ``bits`` numbers by its sign, -1 or 1: 2^bits codes without a codebook.

    The entropy term encourages confident assignments and a uniform usage of the codes:
    ``entropy_weight`` (sum of H[q(code|vector)] over the map - ``diversity`` n H[mean of q]), where
    n is the number of positions of the map, q(code|vector) is proportional to
    exp(-||vector - code||^2 / temperature), and the mean is over the joined batch of all processes
    in training, and over the batch of one process in evaluation.

    Args:
        embedding_dim: Size D of a vector. Linear layers map it to ``bits`` numbers and back, unless
            it is equal to ``bits``.
        bits: Number of bits of an index.
        entropy_weight: Weight of the entropy term, which is in nats per image, as the
            reconstruction is.
        diversity: Weight of the entropy of the use of the codes within the term.
        temperature: Temperature of q(code|vector).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> quantizer = LFQ(embedding_dim=2, bits=2).eval()
        >>> z_q, indices, *_ = quantizer(torch.tensor([0.3, -0.2]).view(1, 2, 1, 1))
        >>> z_q.flatten().tolist(), indices.item()
        ([1.0, -1.0], 2)
    """

    powers: Tensor

    def __init__(
        self,
        embedding_dim: int,
        bits: int = 9,
        entropy_weight: float = 1.0,
        diversity: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(embedding_dim)
        if not 1 <= bits <= _MOST_BITS:
            raise ValueError(f"LFQ: bits must be from 1 to {_MOST_BITS}, got {bits}")
        if not (entropy_weight >= 0 and diversity >= 0):
            raise ValueError(
                "LFQ: entropy_weight and diversity must not be negative, got "
                f"{entropy_weight} and {diversity}"
            )
        if not temperature > 0:
            raise ValueError(f"LFQ: temperature must be positive, got {temperature}")
        self.bits = bits
        self.codebook_size = 2**bits
        self.entropy_weight = entropy_weight
        self.diversity = diversity
        self.temperature = temperature
        self.register_buffer("powers", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)
        same = embedding_dim == bits
        self.project_in = nn.Identity() if same else nn.Linear(embedding_dim, bits)
        self.project_out = nn.Identity() if same else nn.Linear(bits, embedding_dim)

    def quantize(self, vectors: Tensor) -> Quantized:
        """See `Quantizer.quantize`."""
        numbers = self.project_in(vectors)
        signs = torch.where(numbers > 0, 1.0, -1.0).to(numbers.dtype)
        indices = ((signs > 0) * self.powers).sum(-1)
        z_q = self.project_out(numbers + (signs - numbers).detach())
        regularizer = self._entropy_term(numbers) if self.entropy_weight else None
        commitment = squared_distance(numbers, signs)
        return Quantized(z_q, indices, None, commitment, regularizer)

    def _entropy_term(self, numbers: Tensor) -> Tensor:
        """Return the weighted entropy term of numbers (B, h, w, bits), (B,)."""
        # ||v - 1||^2 and ||v + 1||^2 differ by 4 v, and the bits are independent given the vector.
        logits = 4 / self.temperature * numbers
        certain = binary_entropy(logits).flatten(1).sum(1)
        positions = numbers.shape[1:-1].numel()
        # Not in evaluation, where a figure may be drawn by one process alone.
        rows = join_rows(logits) if self.training else logits
        used = entropy_of_mean(rows.flatten(0, -2))
        return self.entropy_weight * (certain - self.diversity * positions * used)

    def codes_at(self, indices: Tensor) -> Tensor:
        """See `Quantizer.codes_at`; with gradients."""
        signs = (indices[..., None] // self.powers % 2).float() * 2 - 1
        codes: Tensor = self.project_out(signs)
        return codes

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `Quantizer.codebooks`."""
        indices = torch.arange(self.codebook_size, device=self.powers.device)
        return {"": self.codes_at(indices).detach()}


def binary_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of Bernoulli variables in nats, of any shape.

    Example:
        >>> binary_entropy(torch.zeros(1)).item() == torch.tensor(2.0).log().item()
        True
    """
    positive = logits.abs()  # the entropy is even, and this side does not overflow
    return nn.functional.softplus(-positive) + positive * (-positive).sigmoid()


def entropy_of_mean(logits: Tensor) -> Tensor:
    """Return the entropy of the mean of N distributions of codes whose bits are independent.

    Args:
        logits: Of each bit being 1, (N, bits).

    Returns:
        Nats, (). The memory grows with 2^(bits / 2) N + 2^bits, not with 2^bits N.

    Example:
        >>> entropy_of_mean(torch.tensor([[100.0], [-100.0]])).item()
        0.6931471824645996
    """
    half = logits.shape[1] // 2
    # A distribution of codes is the outer product of those of their halves.
    first, second = (_joint(part) for part in (logits[:, :half], logits[:, half:]))
    mean = first.t() @ second / len(logits)
    # Probabilities that are 0 in float32 have no finite gradient.
    return -(mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()


def _joint(logits: Tensor) -> Tensor:
    """Return probabilities of the values of independent bits, (N, bits) -> (N, 2^bits)."""
    joint = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        both = torch.stack([(-bit).sigmoid(), bit.sigmoid()], 1)
        joint = (joint[:, :, None] * both[:, None]).flatten(1)
    return joint
