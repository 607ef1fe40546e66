"""The parser of the ``vae`` command and its options."""

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LRSchedulerTypeTuple
from torch.optim import Optimizer

import vae_lightning.distributions  # noqa: F401  its classes are found by their names
from vae_lightning.cli.bundled_configs import find_config
from vae_lightning.cli.command_line import LINKED
from vae_lightning.cli.yaml_files import is_inline, read_utf8
from vae_lightning.figures import FIGURES
from vae_lightning.metrics import METRICS
from vae_lightning.models.image_model import ImageModel
from vae_lightning.training import compat
from vae_lightning.training.best_checkpoint import BestCheckpoint
from vae_lightning.training.last_checkpoint import LastCheckpoint
from vae_lightning.training.module import LitVAE


class WrongOptions(Exception):
    """Options that cannot be parsed; the message is what the parser says."""


class Parser(LightningArgumentParser):
    """A parser that raises `WrongOptions` instead of printing its usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviated option would be taken for whatever happens to begin like it.
        super().__init__(*args, **kwargs, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `WrongOptions`."""
        if not self.exit_on_error:  # a parser inside the parser: the outer one is called later
            super().error(message, ex)
        raise WrongOptions(message) from ex


class ConfigAction(ActionConfigFile):  # type: ignore[misc]
    """Take a configuration: a file, the name of a bundled one, or settings as JSON."""

    def __call__(
        self, parser: Any, cfg: Any, values: str, option_string: str | None = None
    ) -> None:
        """Find the file and apply its text, which jsonargparse would not read as UTF-8."""
        is_json = is_inline(values)
        text = values if is_json else read_utf8(find_config(values))
        super().__call__(parser, cfg, text, option_string)


_COUNTS_OR_SHARES = (
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("overfit_batches", "val_check_interval"),
)
"""Options of the trainer that are a number of batches, or a share of them as a float."""


def add_core_arguments(parser: LightningArgumentParser, is_bounded: Callable[[Any], bool]) -> None:
    """Add options of the trainer, the data, the model and its training.

    Args:
        parser: The parser.
        is_bounded: Function that prepares a data module for a trained model, and returns whether
            its values are in [0, 1].
    """
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    counts = [f"trainer.{name}" for name in _COUNTS_OR_SHARES]
    compat.read_whole_numbers_as_integers(parser, counts)
    parser.add_lightning_class_args(pl.LightningDataModule, "data", subclass_mode=True)
    parser.add_subclass_arguments(ImageModel, "model", fail_untyped=False, required=True)
    # First, because it may change what the data say about themselves.
    parser.link_arguments(
        "data", "model.init_args.bounded", compute_fn=is_bounded, apply_on="instantiate"
    )
    for name in LINKED:
        if name != "bounded":
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
    common: dict[str, Any] = {"instantiate": False, "fail_untyped": False}
    optimizer = {**common, "skip": {"params"}}
    parser.add_subclass_arguments((Optimizer,), "optimizer", **optimizer)
    parser.add_subclass_arguments((Optimizer,), "critic_optimizer", **optimizer)
    parser.add_subclass_arguments(
        LRSchedulerTypeTuple, "lr_scheduler", **common, skip={"optimizer"}
    )
    skip = {"model", "optimizer", "critic_optimizer", "lr_scheduler"}
    parser.add_class_arguments(LitVAE, "training", instantiate=False, skip=skip)
    parser.set_defaults(
        {
            "optimizer": {"class_path": "torch.optim.Adam"},
            "trainer.enable_model_summary": False,
        }
    )


def add_run_arguments(parser: LightningArgumentParser, command: str) -> None:
    """Add options of a run: its folder, checkpoints, figures and metrics."""
    what = "to continue a run, or to start another one from" if command == "fit" else "to use"
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        help=f"Checkpoint {what}: runs/NAME/version_N/checkpoints/best.ckpt or last.ckpt.",
    )
    what = "Checkpoint whose weights a new run starts from, on the same or on other data."
    # The other commands only accept it from a run's config.yaml.
    hidden = argparse.SUPPRESS if command != "fit" else what
    parser.add_argument("--init_from", type=str | None, help=hidden)
    parser.add_argument("--name", type=str | None, help="Name of the run.")
    parser.add_argument(
        "--output_dir",
        type=str,
        default="runs",
        help="The run's folder is OUTPUT_DIR/NAME/version_N.",
    )
    parser.add_class_arguments(BestCheckpoint, "checkpoint")
    parser.add_class_arguments(LastCheckpoint, "last")
    parser.set_defaults(
        {
            "checkpoint.monitor": "val/loss",
            "checkpoint.filename": "best",
            "checkpoint.save_last": True,
        }
    )
    _add_switchable(parser, "figures", FIGURES)
    if command in ("validate", "test"):
        _add_switchable(parser, "metrics", METRICS)
        parser.add_argument(
            "--evaluation_seed",
            type=int,
            default=0,
            help="Seed of the noise: another seed shows how much of a number is chance.",
        )


def _add_switchable(
    parser: LightningArgumentParser, group: str, classes: Mapping[str, type]
) -> None:
    """Add an option ``--GROUP.NAME`` for each class; null switches the class off."""
    for name, cls in classes.items():
        parser.add_argument(
            f"--{group}.{name}",
            type=cls | None,
            default={"class_path": f"{cls.__module__}.{cls.__qualname__}"},
            help=f"{(cls.__doc__ or '').splitlines()[0]} null switches it off.",
        )


def names(parser: LightningArgumentParser) -> list[str]:
    """Return the names of the options of a parser, without the arguments of classes."""
    try:
        keys = parser.get_defaults().keys()
    except (WrongOptions, TypeError, ValueError):  # defaults that a damaged file has set
        return []
    return sorted({re.split(r"\.(?:class_path|init_args)\b", key)[0] for key in keys})


def default_run_name(model_class_path: str) -> str:
    """Return the name of a run by its model: BetaVAE -> beta_vae.

    Example:
        >>> default_run_name("vae_lightning.models.beta_vae.BetaVAE")
        'beta_vae'
    """
    name = model_class_path.rpartition(".")[2]
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
