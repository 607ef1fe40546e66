"""Detect non-finite losses, and abort the training or skip the update."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vae_lightning.distributed import gather, several_processes
from vae_lightning.errors import NonFinite

MAX_SKIPPED_IN_A_ROW = 50
"""Number of consecutive skipped updates after which a training is given up: nothing changes between
them."""

_KEPT = 256
"""Number of batches after which kept losses are checked, even if nothing is logged or saved."""


class NonFiniteDetector:
    """Find the first batch whose loss is not finite.

    A single process on a CPU finds it at once. A GPU would have to be waited for at every step, and
    one of several processes cannot stop alone: there, losses are kept until `flush` checks them
    together.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, Tensor, dict[str, Tensor]]] = []  # step, loss, its terms

    def check(self, step: int, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Check a batch, now or later.

        Args:
            step: Number of the batch.
            loss: Mean of the objective, ().
            terms: The terms of the objective by name, (B,) or ().

        Raises:
            NonFinite: If it is not finite and that can be known at once.
        """
        at_once = loss.device.type == "cpu" and not several_processes()
        if at_once and math.isfinite(loss.item()):
            return
        self._kept.append((step, loss.detach(), {k: v.detach() for k, v in terms.items()}))
        if at_once or len(self._kept) == _KEPT:
            self.flush()

    def flush(self) -> None:
        """Check all batches since the last time, together with the other processes.

        Raises:
            NonFinite: If the loss of one was not finite in any process; raised in all of them.
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


class UpdateGuard:
    """Skip the update of a batch whose loss or gradient is not finite.

    Args:
        module: The module that is trained. State without gradients, such as moving averages, is
            restored when an update is skipped.

    Attributes:
        skipped: Number of skipped updates.
        in_a_row: Number of consecutive skipped updates, up to now.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.skipped = self.in_a_row = 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._bad: list[Tensor] = []

    def save_state(self) -> None:
        """Keep what the forward pass of a batch may change; call it before the forward pass."""
        if not self._bad:  # with accumulated batches: the state before the first
            state = [*self.module.buffers(), *self.module.parameters()]
            self._kept = [(x, x.detach().clone()) for x in state if not x.requires_grad]

    def check(self, loss: Tensor) -> None:
        """Note whether the loss of a batch is finite."""
        self._bad.append(~loss.detach().isfinite())

    @torch.no_grad()
    def skip(self, parameters: Iterable[Tensor], scaled: bool) -> None:
        """Before an update: remove its gradients if a loss or a gradient is not finite.

        An optimizer ignores parameters without a gradient.

        Args:
            parameters: The parameters that would be updated.
            scaled: Whether gradients may overflow because 16-bit training scales them. Such
                training skips these updates by itself.
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
