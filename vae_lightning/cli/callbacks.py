"""Callbacks of the command line: settings and reports."""

import itertools
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from vae_lightning.cli import report, run_folders
from vae_lightning.cli.yaml_files import parse_yaml
from vae_lightning.errors import UserError
from vae_lightning.files import atomic_write_text
from vae_lightning.training.module import LitVAE
from vae_lightning.training.optimizers import apply_changes, check_states


class SaveConfig(SaveConfigCallback):
    """Write ``config.yaml`` of a training, and send the same to the experiment trackers.

    Args:
        parser: See `SaveConfigCallback`.
        config: The options with the folders of this run filled in; not saved.
        given: The options without these folders, so that they can be used again.
        continues: Whether the run is continued. If its settings change, the earlier ones are kept
            as ``config_N.yaml``.
        **kwargs: See `SaveConfigCallback`.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        given: Namespace,
        continues: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(parser, given, save_to_log_dir=False, **kwargs)
        self.continues = continues

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the settings of a new run."""
        if stage != "fit":
            return
        # With it, a run that is repeated from its configuration would be resumed instead.
        self.config.pop("ckpt_path", None)
        folder = Path(str(trainer.log_dir or trainer.default_root_dir))  # broadcast, so in all
        self.path = folder / "config.yaml"
        if trainer.is_global_zero and not self.continues:
            self._write()
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the settings of a continued run, once it is known that it can be continued."""
        if trainer.is_global_zero and self.continues:
            check_states(trainer.optimizers)
            self._write()

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Send the settings to the experiment trackers."""
        text = self._text()
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # A continued run has those of its first part there.
                settings = {"config": parse_yaml(text, "config.yaml")}
                logger.experiment.config.update(settings, allow_val_change=True)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")

    def _text(self) -> str:
        """Return the settings as YAML that can be read again."""
        # Arguments that are objects, such as a device, keep the default of their class.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*Unable to serialize instance")
            text: str = self.parser.dump(_without_string_enums(self.config), skip_none=False)
        lines = text.splitlines(keepends=True)
        return "".join(line for line in lines if "Unable to serialize instance" not in line)

    def _write(self) -> None:
        text = self._text()
        if self.path.is_file() and self.continues:
            before = self.path.read_text(encoding="utf-8")
            if before == text:
                return
            names = (self.path.with_name(f"config_{n}.yaml") for n in itertools.count(1))
            atomic_write_text(next(name for name in names if not name.exists()), before)
        elif self.path.is_file():
            raise UserError(f"{self.path} already exists: give another --name")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self.path, text)


def _without_string_enums(value: Any) -> Any:
    """Return options with the values of string enumerations, which YAML cannot represent.

    They are defaults of arguments that are annotated as strings. Other enumerations are annotated
    as such, and jsonargparse writes their names.
    """
    if isinstance(value, Namespace):
        return Namespace(**{key: _without_string_enums(item) for key, item in vars(value).items()})
    if isinstance(value, list):
        return [_without_string_enums(item) for item in value]
    return value.value if isinstance(value, Enum) and isinstance(value, str) else value


class Reporter(pl.Callback):
    """Print the results of ``vae test`` and ``vae validate``, and write them.

    This is a callback because with some strategies only the processes that ran the model know them.

    Args:
        folder: Folder of the run.
        how: The command and the checkpoint, by name.
    """

    def __init__(self, folder: Path, how: dict[str, str]) -> None:
        self.folder = folder
        self.how = how

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the results of a validation."""
        self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the results of a test."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(module, LitVAE)
        data = trainer.datamodule  # type: ignore[attr-defined]
        content = report.document(module, data, **self.how, split=stage)
        images = f"{content['images']:,} {stage} images of {content['data']}"
        # Printed first: a folder that cannot be written to must not cost the numbers.
        print("", f"{content['model']} on {images}:", *report.lines(module), sep="\n", flush=True)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = report.write(content, self.folder / stage)
            print(f"Metrics:     {run_folders.short(path)}")


class ChangedOptions(pl.Callback):
    """Put changed options into what a checkpoint restores: optimizers, and `EarlyStopping`.

    Args:
        changes: New values by the name of the option, for the model's optimizer and the critic's.
    """

    def __init__(self, changes: list[dict[str, Any]]) -> None:
        self.changes = changes
        self.patience: dict[EarlyStopping, int] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note the patience that the options ask for, before a checkpoint replaces it."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self.patience = {c: c.patience for c in callbacks if isinstance(c, EarlyStopping)}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Change the options."""
        for callback, patience in self.patience.items():
            callback.patience = patience
        apply_changes(trainer.optimizers, self.changes)
