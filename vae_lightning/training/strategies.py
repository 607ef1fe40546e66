"""What strategies of several processes need of a model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import lightning.pytorch as pl
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import Tensor, nn

from vae_lightning.distributed import mean
from vae_lightning.models.image_model import ImageModel


def prepare(strategy: Strategy, model: ImageModel) -> None:
    """Prepare a model for the strategy that is about to wrap it.

    Args:
        strategy: The strategy of the trainer.
        model: The model.

    Raises:
        ValueError: If the strategy cannot train the model.
    """
    if isinstance(strategy, ModelParallelStrategy):
        raise ValueError("ModelParallelStrategy is not supported: use --trainer.strategy fsdp")
    if isinstance(strategy, FSDPStrategy):
        if model.critic is not None:
            raise ValueError(
                f"{type(model).__name__} has a critic, whose weights cannot be sharded: "
                "use --trainer.strategy ddp"
            )
        _exclude_from_sharding(strategy, model.unsharded_parameters())
    if isinstance(strategy, DDPStrategy):
        _keep_strides_of_gradients(model)


def _exclude_from_sharding(strategy: FSDPStrategy, parameters: Iterable[nn.Parameter]) -> None:
    """Exclude parameters from sharding: every process holds and updates all of them.

    Their gradients are averaged over all processes.
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


def _keep_strides_of_gradients(model: nn.Module) -> None:
    """Let gradients have the strides of their parameters, as the buckets of DDP do.

    The strides of dimensions of size 1, as in the first convolution of gray images, have no
    meaning, and differ if the images are in channels-last memory format. DDP warns about them.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1 and 1 in parameter.shape:
            parameter.register_hook(partial(_with_default_strides, parameter.shape))


def _with_default_strides(shape: tuple[int, ...], grad: Tensor) -> Tensor:
    return grad.reshape(-1).view(shape)


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
