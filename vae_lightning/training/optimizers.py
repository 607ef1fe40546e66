"""Optimizers: one for a model, or two for a model and its critic, and their checks."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Adam, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vae_lightning.errors import UserError
from vae_lightning.settings import class_of, to_plain_data

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class JointOptimizer(Optimizer):
    """Several optimizers that step together, each on its own parameters.

    One backward pass serves all of them, so a training with a critic keeps automatic optimization:
    ``global_step`` counts batches, and clipping, accumulation, mixed precision, schedules and
    resume work as with one optimizer. ``param_groups`` holds the very dictionaries of the parts, so
    a schedule reaches all of them.

    Args:
        optimizers: The parts.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        # Schedules read the defaults; those of the first part are the model's.
        defaults = dict(self.optimizers[0].defaults)
        super().__init__([{"params": g["params"], "lr": g["lr"]} for g in groups], defaults)
        self.param_groups = groups

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Evaluate the closure once, then step every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the parts."""
        return {"parts": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of the parts.

        Raises:
            UserError: If the state is not one of as many optimizers.
        """
        parts = state_dict.get("parts")
        if not isinstance(parts, list) or len(parts) != len(self.optimizers):
            raise UserError(
                "the optimizer state of the checkpoint is not that of a model with a critic: use "
                "another checkpoint"
            )
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            optimizer.load_state_dict(part)
        self.param_groups = [g for optimizer in self.optimizers for g in optimizer.param_groups]


def build(
    module: nn.Module,
    critic: nn.Module | None,
    optimizer: OptimizerFactory,
    critic_optimizer: OptimizerFactory,
) -> Optimizer:
    """Build the optimizer of a module, joint if it has a critic.

    Args:
        module: The module that is trained, with its critic.
        critic: The critic, whose parameters have an optimizer of their own.
        optimizer: Makes the optimizer of all other parameters.
        critic_optimizer: Makes the optimizer of the critic.
    """
    of_critic = set() if critic is None else {id(p) for p in critic.parameters()}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    built = [optimizer([p for p in trained if id(p) not in of_critic])]
    if critic is not None:
        built.append(critic_optimizer([p for p in trained if id(p) in of_critic]))
    for part in built:
        fuse_adam(part)
        if critic is not None and isinstance(part, LBFGS):
            raise ValueError(
                "LBFGS evaluates a batch several times, which a model with a critic does not "
                "support: choose another optimizer"
            )
    return built[0] if critic is None else JointOptimizer(built)


def describe(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the class of an optimizer or a scheduler with all of its arguments, as plain data.

    Args:
        factory: The class, or ``functools.partial(class, name=value)``.

    Raises:
        TypeError: If it is something else, or an argument is not plain data.

    Example:
        >>> describe(torch.optim.SGD)["init_args"]["momentum"]
        0
    """
    description: dict[str, Any] = to_plain_data(factory)
    cls = class_of(factory)
    assert cls is not None
    defaults = {
        parameter.name: to_plain_data(parameter.default)
        for parameter in inspect.signature(cls).parameters.values()
        if isinstance(parameter.default, bool | int | float | str | tuple | None)
    }
    return {**description, "init_args": {**defaults, **description.get("init_args", {})}}


def with_scheduler(optimizer: Optimizer, make: Callable[[Optimizer], Any]) -> dict[str, Any]:
    """Return what ``configure_optimizers`` returns for an optimizer and a scheduler.

    Args:
        optimizer: The optimizer.
        make: Makes the scheduler, which is stepped after every epoch.
    """
    scheduler = make(optimizer)
    config = {"scheduler": scheduler}
    if isinstance(scheduler, ReduceLROnPlateau):
        # Lightning's class has a `monitor`, torch's does not.
        config["monitor"] = getattr(scheduler, "monitor", "val/loss")
    return {"optimizer": optimizer, "lr_scheduler": config}


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """Return the parts of a joint optimizer, or the optimizer itself."""
    return optimizer.optimizers if isinstance(optimizer, JointOptimizer) else [optimizer]


def check_factories(
    optimizer: OptimizerFactory,
    critic_optimizer: OptimizerFactory | None,
    lr_scheduler: Callable[[Optimizer], Any] | None,
) -> None:
    """Build optimizers and scheduler once, so that wrong arguments are refused at once.

    Raises:
        ValueError: If one of them refuses its arguments.
    """
    built = _checked("optimizer", lambda: optimizer([nn.Parameter(torch.zeros(1, 1))]))
    if critic_optimizer is not None:
        make = critic_optimizer
        _checked("critic_optimizer", lambda: make([nn.Parameter(torch.zeros(1, 1))]))
    if lr_scheduler is not None:
        scheduler = lr_scheduler
        _checked("lr_scheduler", lambda: scheduler(built))


def _checked(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{name}: {error}") from error


def fuse_adam(optimizer: Optimizer) -> None:
    """Use the fused kernel of Adam and AdamW, three times as fast on a CPU, unless asked otherwise.

    Not by the argument ``fused``: with it the kernel would also undo the scaling of 16-bit
    gradients, which Lightning 2.6 cannot clip then (Lightning-AI/pytorch-lightning#21436).
    """
    if not isinstance(optimizer, Adam):
        return
    for group in optimizer.param_groups:
        chosen = group["foreach"] or group["capturable"] or group["differentiable"]
        devices = {parameter.device.type for parameter in group["params"]}
        if group["fused"] is None and not chosen and devices <= {"cpu", "cuda"}:
            group["fused"] = True


def check_states(optimizers: Iterable[Optimizer]) -> None:
    """Check the restored state of Adam: its fused kernel reads beyond the end of short tensors.

    Raises:
        UserError: If the state does not fit the weights.
    """
    for optimizer in (part for joint in optimizers for part in parts_of(joint)):
        for parameter, state in optimizer.state.items() if isinstance(optimizer, Adam) else ():
            sizes = {
                "step": torch.Size(),
                "exp_avg": parameter.shape,
                "exp_avg_sq": parameter.shape,
            }
            if any(getattr(state.get(name), "shape", None) != s for name, s in sizes.items()):
                raise UserError(
                    "the state of the optimizer in the checkpoint does not fit the weights: "
                    "use another one from the same folder"
                )


def apply_changes(optimizers: Sequence[Optimizer], changes: Sequence[dict[str, Any]]) -> None:
    """Put changed options, such as the learning rate, into restored optimizers.

    Args:
        optimizers: The optimizers of a trainer: one, which may be joint.
        changes: New values by the name of the option, for each part.
    """
    parts = [part for optimizer in optimizers for part in parts_of(optimizer)]
    for part, changed in zip(parts, changes, strict=False):
        for group in part.param_groups:
            group.update(changed)
