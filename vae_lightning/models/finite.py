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

_KEPT = 256
"""Batches after which losses are looked at, even if nothing is logged or saved."""


class FiniteWatch:
    """Finds the first batch whose loss is not finite.

    On a CPU it is found at once. A GPU would have to be waited for at every step, and of several
    processes one cannot stop by itself: there, losses are kept until `find` looks at all of them.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, Tensor, dict[str, Tensor]]] = []  # step, loss, its terms

    def look(self, step: int, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Look at a batch.

        Args:
            step: Its number.
            loss: Mean of the objective.
            terms: One value per image by name, each (B,).

        Raises:
            NonFinite: If it is not finite and that can be known at once.
        """
        at_once = loss.device.type == "cpu" and not several_processes()
        if at_once and math.isfinite(loss.item()):
            return
        self._kept.append((step, loss.detach(), {k: v.detach() for k, v in terms.items()}))
        if at_once or len(self._kept) == _KEPT:
            self.find()

    def find(self) -> None:
        """Look at all batches since the last time, together with the other processes.

        Raises:
            NonFinite: If the loss of one was not finite in any process; in all of them.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return
        finite = torch.stack([loss for _, loss, _ in kept]).isfinite().tolist()
        mine = None
        if not all(finite):
            step, _, terms = kept[finite.index(False)]
            mine = step, [name for name, value in terms.items() if not value.isfinite().all()]
        found = [first for first in gather(mine) if first is not None]
        if found:
            raise NonFinite("the loss", *min(found))


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
