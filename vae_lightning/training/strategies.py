"""Fully sharded data parallelism: unsharded parameters, and full weights outside of steps."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from vae_lightning.distributed import mean


def ignore_parameters(strategy: FSDPStrategy, parameters: Iterable[nn.Parameter]) -> None:
    """Exclude parameters from sharding: every process holds and updates all of them.

    Args:
        strategy: The strategy, before it has set up its model.
        parameters: The parameters; their gradients are averaged over all processes.
    """
    parameters = list(parameters)
    for parameter in parameters:
        # FSDP moves only sharded parameters to the device, and averages only their gradients.
        parameter.data = parameter.data.to(strategy.root_device)
        if parameter.requires_grad:
            parameter.register_hook(mean)
    if parameters:
        given = strategy.kwargs.get("ignored_states", ())
        strategy.kwargs["ignored_states"] = [*given, *parameters]


@contextmanager
def full_weights(trainer: pl.Trainer) -> Iterator[None]:
    """Gather sharded weights, so that networks can be called outside of a training step.

    With FSDP all processes have to enter, whether they call a network or not.
    """
    if not isinstance(trainer.strategy, FSDPStrategy):
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    assert trainer.strategy.model is not None
    with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):
        yield
