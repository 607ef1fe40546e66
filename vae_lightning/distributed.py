"""What several processes have to tell one another."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn


def several_processes() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(x: Tensor) -> Tensor:
    """The rows (N, ...) of all processes; N may differ between them.

    In the order in which `ShardSampler` deals images out: the first row of each process, then the
    second of each, ... so that the rows are those of one process with the joined batch.
    """
    if not several_processes():
        return x
    lengths = [0] * dist.get_world_size()
    dist.all_gather_object(lengths, len(x))
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    there = torch.arange(len(padded))[:, None] < torch.tensor(lengths)
    return torch.stack(gathered, 1)[there.to(x.device)]


def total(x: Tensor) -> Tensor:
    """The sum of ``x`` over all processes; ``x`` itself is left as it is."""
    if not several_processes():
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def gather(x: Any) -> list[Any]:
    """``x`` of every process, in the order of ranks."""
    if not several_processes():
        return [x]
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, x)
    return gathered


def mean(x: Tensor) -> Tensor:
    """The mean of ``x`` over all processes."""
    return total(x) / dist.get_world_size() if several_processes() else x


def share_buffers(module: nn.Module) -> None:
    """Give all processes the buffers of the first, such as the statistics of BatchNorm."""
    if several_processes():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def from_first(make: Callable[[], Any]) -> Any:
    """What ``make`` returns in the first process, which alone calls it, in all processes.

    If it raises an error, all of them raise it: none is left waiting.
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


def keep_whole(strategy: FSDPStrategy, parameters: Iterable[nn.Parameter]) -> None:
    """Leave parameters out of what FSDP cuts into shards: every process holds and updates them.

    Args:
        strategy: Before it has set up its model.
        parameters: Those of a training; their gradients are averaged over all processes.
    """
    parameters = list(parameters)
    for parameter in parameters:
        # FSDP moves to the device what it shards, and averages only their gradients.
        parameter.data = parameter.data.to(strategy.root_device)
        if parameter.requires_grad:
            parameter.register_hook(mean)
    if parameters:
        given = strategy.kwargs.get("ignored_states", ())
        strategy.kwargs["ignored_states"] = [*given, *parameters]


@contextmanager
def whole_weights(trainer: pl.Trainer) -> Iterator[None]:
    """Put shards of weights together, so that networks can be called outside of a step.

    With FSDP all processes have to enter, whether they call a network or not.
    """
    if not isinstance(trainer.strategy, FSDPStrategy):
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    assert trainer.strategy.model is not None
    with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):
        yield
