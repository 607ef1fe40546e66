"""What several processes have to tell one another."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(x: Tensor) -> Tensor:
    """The rows (N, ...) of all processes, in the order of ranks; N may differ between them."""
    if not several_processes():
        return x
    lengths = [0] * dist.get_world_size()
    dist.all_gather_object(lengths, len(x))
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:n] for part, n in zip(gathered, lengths, strict=True)])


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
