"""Losses that become NaN or infinite: found, and either the end of a training or left out."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vae_lightning.distributed import gather, several_processes
from vae_lightning.errors import NonFinite

MOST_IN_A_ROW = 50
"""Updates left out one after the other from which a training does not recover: the weights are the
same for all of them."""


class FiniteWatch:
    """Finds the first batch whose loss is not finite.

    On a CPU it is found at once. A GPU would have to be waited for at every step, and of several
    processes one cannot stop by itself: there, `find` is asked from time to time.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None  # step, and the terms as bits; step -1: none so far
        self._names: list[str] = []

    def look(self, step: int, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Look at a batch.

        Args:
            step: Its number.
            loss: Mean of the objective.
            terms: One value per image by name, each (B,).

        Raises:
            NonFinite: If it is not finite and that can be known at once.
        """
        if loss.device.type == "cpu" and not several_processes():
            if not math.isfinite(loss.item()):
                wrong = [name for name, value in terms.items() if not value.isfinite().all()]
                raise NonFinite("the loss", step, wrong)
            return
        self._names = list(terms)
        wrong_terms = ~torch.stack([value.detach().sum() for value in terms.values()]).isfinite()
        bits = (wrong_terms.long() << torch.arange(len(terms), device=loss.device)).sum()
        now = torch.stack([torch.full_like(bits, step), bits])
        if self._first is None:
            self._first = torch.full_like(now, -1)
        is_first = (self._first[0] < 0) & ~loss.detach().isfinite()
        self._first = torch.where(is_first, now, self._first)

    def find(self) -> None:
        """Look back at all batches so far, together with the other processes.

        Raises:
            NonFinite: If the loss of one was not finite in any process; in all of them.
        """
        if self._first is None:
            return
        found = [row for row in gather(self._first.tolist()) if row[0] >= 0]
        if found:
            step, bits = min(found)
            raise NonFinite(
                "the loss", step, [n for i, n in enumerate(self._names) if bits >> i & 1]
            )


class Undo:
    """Leaves out the update of a batch whose loss or gradient is not finite.

    Args:
        module: What is trained. What it keeps without gradients, such as moving averages, is put
            back as well.

    Attributes:
        skipped: Number of updates left out.
        in_a_row: As many of them since the last one that was not.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.skipped = self.in_a_row = 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._bad: list[Tensor] = []

    def remember(self) -> None:
        """Before a batch: keep what its forward pass may change."""
        if not self._bad:  # of several batches for one update: what was before the first
            state = [*self.module.buffers(), *self.module.parameters()]
            self._kept = [(x, x.detach().clone()) for x in state if not x.requires_grad]

    def look(self, loss: Tensor) -> None:
        """Look at the loss of a batch."""
        self._bad.append(~loss.detach().isfinite())

    @torch.no_grad()
    def leave_out(self, parameters: Iterable[Tensor], scaled: bool) -> None:
        """Before an update: take away its gradients if anything is wrong with them.

        An optimiser passes over parameters without a gradient.

        Args:
            parameters: What would be updated.
            scaled: Whether the gradients may overflow because a 16-bit training scales them,
                which then looks after that itself.
        """
        parameters = list(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        bad, self._bad = self._bad, []
        if not scaled and gradients:
            bad.append(~nn.utils.get_total_norm(gradients).isfinite())
        if bad and any(gather(bool(torch.stack(bad).any()))):
            for parameter in parameters:
                parameter.grad = None
            for tensor, value in self._kept:
                tensor.copy_(value)
            self.skipped += 1
            self.in_a_row += 1
        else:
            self.in_a_row = 0
