"""Communication between the processes of a distributed training."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def several_processes() -> bool:
    """Return whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows (N, ...) of all processes, without gradients; N may differ between them.

    The order is the one in which `ShardSampler` deals out images: the first row of every process,
    then the second of every process, and so on. The result therefore equals the batch that a single
    process would have.
    """
    return _gather_rows(x)[0] if several_processes() else x.detach()


class _JoinRows(torch.autograd.Function):
    """`gather_rows` with a backward pass that sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        joined, ctx.own = _gather_rows(x)
        return joined

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return total(grads[0].contiguous())[ctx.own]


def join_rows(x: Tensor) -> Tensor:
    """Return the rows (N, ...) of all processes, with gradients, in the order of `gather_rows`.

    Use it for terms that depend on the whole batch. Data-parallel training averages the gradients
    of the processes, so the backward pass of the gathering sums over them: the gradient of
    ``per_image.mean() + batch_term(join_rows(z))`` is then the one of a single process with the
    joined batch.
    """
    return _JoinRows.apply(x) if several_processes() else x


def own_rows(x: Tensor) -> Tensor:
    """Return the positions of this process's rows ``x`` (N, ...) in ``gather_rows(x)``, (N,)."""
    if not several_processes():
        return torch.arange(len(x), device=x.device)
    return _own_rows(_row_counts(x)).to(x.device)


def _gather_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of all processes, and the positions of those of this process."""
    counts = _row_counts(x)
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    present = torch.arange(len(padded))[:, None] < torch.tensor(counts)
    return torch.stack(gathered, 1)[present.to(x.device)], _own_rows(counts).to(x.device)


def _row_counts(x: Tensor) -> list[int]:
    """Return the number of rows of each process, in the order of ranks."""
    counts = [
        torch.empty(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    return torch.cat(counts).tolist()


def _own_rows(counts: list[int]) -> Tensor:
    """Return the positions of this process's rows, dealt out as `gather_rows` says."""
    present = torch.arange(max(counts))[:, None] < torch.tensor(counts)
    positions = present.flatten().cumsum(0).view_as(present) - 1
    rank = dist.get_rank()
    return positions[: counts[rank], rank]


def total(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all processes; ``x`` itself is not changed."""
    if not several_processes():
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def mean(x: Tensor) -> Tensor:
    """Return the mean of ``x`` over all processes."""
    return total(x) / dist.get_world_size() if several_processes() else x


def gather(x: Any) -> list[Any]:
    """Return the object ``x`` of every process, in the order of ranks."""
    if not several_processes():
        return [x]
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, x)
    return gathered


def share_buffers(module: nn.Module) -> None:
    """Copy the buffers of the first process, such as BatchNorm statistics, to all others."""
    if several_processes():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def from_first(make: Callable[[], Any]) -> Any:
    """Call ``make`` in the first process only and return its result in all processes.

    If it raises an error, all processes raise it, so that none is left waiting.
    """
    if not several_processes():
        return make()
    made: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            made[0] = make()
        except Exception as error:
            made[1] = error
    dist.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise made[1]
    return made[0]
