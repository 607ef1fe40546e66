"""What may change when a training is continued, and what may not."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from vae_lightning.checkpoint import is_inside_epoch, portable
from vae_lightning.data import ImageData
from vae_lightning.errors import UserError
from vae_lightning.layers import LINKED

_MODEL_MAY_CHANGE = {"optimizer", "lr_scheduler", "compile", "updates_per_call", "skip_non_finite"}
"""Arguments of a model that do not change what is trained; the first two are compared apart."""


class Finished(UserError):
    """A training that cannot be continued because it is complete."""


def check_model(content: dict[str, Any], config: Namespace) -> None:
    """Check that a checkpoint holds the class of model that the options ask for.

    Args:
        content: What the checkpoint holds.
        config: The options, with ``ckpt_path``.

    Raises:
        UserError: If it does not.
    """
    asked = _name(config.model.class_path)
    held = _name(content["hyper_parameters"]["_class_path"])
    if asked != held:
        raise UserError(
            f"{config.ckpt_path} holds a {held}, but the options ask for a {asked}: "
            "leave out --model, and --config files that name another model"
        )


def check_progress(content: dict[str, Any], config: Namespace) -> None:
    """Check that a training can be continued, and that there is something left of it.

    Raises:
        UserError: If it cannot.
        Finished: If there is not.
    """
    if not content.get("optimizer_states"):
        raise UserError(
            f"{config.ckpt_path} holds weights only and cannot be resumed: give a checkpoint "
            "with the state of the optimizer, such as last.ckpt"
        )
    done = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    reached = {"max_epochs": (done, "epochs"), "max_steps": (content["global_step"], "steps")}
    for option, (number, unit) in reached.items():
        limit = config.trainer[option]
        if limit is not None and 0 <= limit <= number:
            raise Finished(
                f"{config.ckpt_path} has been trained for {number} {unit} already: give a "
                f"--trainer.{option} larger than {number}"
            )

    limits = [config.trainer.max_epochs, config.trainer.max_steps]
    if content.get("stopped_before") == limits:
        raise Finished(
            f"{config.ckpt_path} was ended by a callback, such as EarlyStopping, before its "
            "--trainer.max_epochs: give another one to go on all the same"
        )


def check_arguments(content: dict[str, Any], config: Namespace) -> None:
    """Check that the model and what it is trained on are those of the training that is continued.

    Raises:
        UserError: If they are not.
    """
    asked = portable(config.model.init_args.as_dict())
    held = content["hyper_parameters"]
    for name in sorted((held.keys() & asked.keys()) - _MODEL_MAY_CHANGE - LINKED):
        if _differs(held[name], asked[name]):
            raise UserError(
                f"a resumed training keeps its model: leave out --model.{name}, which changes what "
                f"{config.ckpt_path} was trained with, or start anew"
            )


def _differs(held: Any, asked: Any) -> bool:
    """Whether two arguments differ, in what is known of both."""
    if isinstance(held, Mapping) and isinstance(asked, Mapping):
        return any(
            _name(held[key]) != _name(asked[key])
            if key == "class_path"
            else _differs(held[key], asked[key])
            for key in held.keys() & asked.keys()
        )
    return bool(held != asked)


def check_data(content: dict[str, Any], config: Namespace) -> None:
    """Check that the images and their order are those of the training that is continued.

    Raises:
        UserError: If they are not.
    """
    held = dict(content.get("datamodule_hyper_parameters") or {})
    held_class = held.pop("_class_path", None)
    if held_class is None:
        return  # from outside of this project
    if _name(held_class) != _name(config.data.class_path):
        raise UserError(
            f"a resumed training keeps its images: leave out --data ({config.ckpt_path} was "
            f"trained on {_name(held_class)}), or start anew"
        )
    asked = portable(config.data.init_args.as_dict())
    changed = {name for name, value in asked.items() if name in held and held[name] != value}
    fixed = changed - ImageData.CHANGEABLE
    if not is_inside_epoch(content):
        fixed -= {"batch_size"}  # between two epochs
    if fixed:
        name = min(fixed)
        raise UserError(
            f"a resumed training keeps its images: leave out --data.{name} {asked[name]} "
            f"({config.ckpt_path} has {held[name]}), or start anew"
        )


def optimizer_changes(content: dict[str, Any], config: Namespace) -> dict[str, Any]:
    """What the options change of the optimizer whose state will be restored, by name.

    Raises:
        UserError: If it is another optimizer, or a scheduler would change it back.
    """
    held, asked = content["hyper_parameters"], config.model.init_args.as_dict()
    old, new = (part["optimizer"].get("init_args") or {} for part in (held, asked))
    changed = {k: v for k, v in new.items() if k in old and portable(v) != old[k]}
    same_class = all(
        _name(portable(asked[key] or {}).get("class_path", ""))
        == _name((held[key] or {}).get("class_path", ""))
        for key in ("optimizer", "lr_scheduler")
    )
    schedules = [portable(part["lr_scheduler"] or {}).get("init_args") for part in (held, asked)]
    same_schedule = all((schedules[1] or {}).get(k) == v for k, v in (schedules[0] or {}).items())
    if not (same_class and same_schedule) or (changed and asked["lr_scheduler"]):
        raise UserError(
            "a resumed training keeps its optimizer and learning-rate scheduler: leave out the "
            "options that change them, or start anew"
        )
    return changed


def _name(class_path: str) -> str:
    return class_path.rpartition(".")[2]
