"""The ``vae`` command: LightningCLI, and what it needs so that its options do what they say."""

import contextlib
import itertools
import logging
import os
import re
import secrets
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from vae_lightning import (
    callbacks,
    checkpoint,
    checks,
    cpu,
    report,
    resume,
    runs,
    slurm,
    trust,
    usage,
)
from vae_lightning.callbacks.best_checkpoint import BestCheckpoint
from vae_lightning.callbacks.last_checkpoint import Interrupted, LastCheckpoint
from vae_lightning.checkpoint_io import SafeCheckpointIO, check_room
from vae_lightning.data import ImageData
from vae_lightning.errors import NonFinite, UserError, fail
from vae_lightning.files import replace
from vae_lightning.layers import LINKED, flags, named_by_user, of_checkpoint, with_layers
from vae_lightning.loggers import MetricsLog
from vae_lightning.metrics import MEASURES
from vae_lightning.models import BaseVAE
from vae_lightning.models.training import check_states
from vae_lightning.signals import LISTENER, REQUEUE

TRACEBACK = "VAE_TRACEBACK"
"""Environment variable that shows where an error came from."""


def run(args: Sequence[str]) -> None:
    """Run ``vae`` with arguments that begin with a command.

    Raises:
        SystemExit: With code 2 for wrong options, 1 for an error that is the user's to mend.
    """
    try:
        with trust.importing_only(named_by_user(args)):
            _Command(list(args))
    except _WrongOptions as error:
        if os.environ.get(TRACEBACK):
            raise
        fail(str(error), 2)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        fail(usage.sentence(error, TRACEBACK), 1)


class _WrongOptions(Exception):
    """Options that cannot be parsed."""


class _Parser(LightningArgumentParser):
    """A parser whose errors are one sentence."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviated option would be taken for whatever happens to begin like it.
        super().__init__(*args, **kwargs, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser within the parser: the outer one comes here later
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = {action.dest for action in parser._actions}
        raise _WrongOptions(usage.explain(message, options)) from ex


class _SaveConfig(SaveConfigCallback):
    """Writes config.yaml of a training, and sends the same to the experiment trackers.

    Args:
        parser: See `SaveConfigCallback`.
        config: What is instantiated, with the folders of this run filled in.
        given: What is saved: the options without these, so that it can be used again.
        replace: Whether the folder is that of a run that is continued. Its configuration is kept
            as ``config_N.yaml`` if this one is another.
        **kwargs: See `SaveConfigCallback`.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        given: Namespace,
        replace: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(parser, given, save_to_log_dir=False, **kwargs)
        self.replace = replace

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # With it, a run that is repeated from its configuration would resume instead.
        self.config.pop("ckpt_path", None)
        folder = Path(str(trainer.log_dir or trainer.default_root_dir))  # broadcast: in all
        self.path = folder / "config.yaml"
        if trainer.is_global_zero and not self.replace:
            self._write(self.path)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.replace:
            check_states(trainer.optimizers)  # whatever cannot be continued is left as it was
            self._write(self.path)

    def _write(self, path: Path) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        if path.is_file() and self.replace:
            if path.read_text() == text:
                return
            names = (path.with_name(f"config_{n}.yaml") for n in itertools.count(1))
            replace(next(name for name in names if not name.exists()), path.read_text())
        elif path.is_file():
            raise UserError(f"{path} is there already: give another --name")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update({"config": yaml.safe_load(text)})
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("config", f"```yaml\n{text}\n```")


class _Command(LightningCLI):
    """``vae fit``, ``validate``, ``test`` and ``predict``.

    Args:
        args: The command and its options, as they were typed.
    """

    subcommand: str
    model: BaseVAE
    datamodule: ImageData

    def __init__(self, args: list[str]) -> None:
        _quieten()
        self.typed = args
        self.given = shlex.join(["vae", *args])
        self.optimizer_changes: dict[str, Any] = {}
        self.reserved: list[Path] = []
        self.remembered: dict[str, Any] = {}
        self.ckpt: dict[str, Any] | None = None
        self.continues = False
        try:
            super().__init__(
                model_class=BaseVAE,
                datamodule_class=pl.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=_SaveConfig,
                seed_everything_default=0,
                parser_class=_Parser,
                auto_configure_optimizers=False,
                args=with_layers(args),
            )
        except BaseException as error:
            if isinstance(error, SystemExit) and self._is_interrupted_evaluation():
                print("\nvae: interrupted", file=sys.stderr)
                raise SystemExit(130) from None
            launcher = getattr(self, "trainer", None) and self.trainer.strategy.launcher
            if launcher and isinstance(error, Exception):
                # Of its processes, which may wait for this one.
                launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))
            self._leave_nothing()
            raise
        finally:
            for folder in self.reserved:  # of a run that did not begin
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _is_interrupted_evaluation(self) -> bool:
        """Whether Ctrl-C ended a command, for which Lightning exits with 1 and says nothing."""
        trainer = getattr(self, "trainer", None)
        return trainer is not None and trainer.interrupted and self.subcommand != "fit"

    def _leave_nothing(self) -> None:
        """Take away what a run has written that failed before its first batch."""
        if not self.reserved or getattr(getattr(self, "model", None), "began", False):
            return
        folder, written = self.reserved[0], {"config.yaml", "hparams.yaml", runs.RECORD}
        with contextlib.suppress(OSError):
            (folder / "checkpoints").rmdir()  # if it is empty
        if {path.name for path in folder.iterdir()} <= written:
            for path in folder.iterdir():
                path.unlink()

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that was typed: a parser of options takes a while to build."""
        name = self.typed[0]
        return {name: super().subcommands()[name]}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            self._add_switchable(parser, "metrics", MEASURES)
            parser.add_argument(
                "--evaluation_seed",
                type=int,
                default=0,
                help="Of the noise: another seed shows how much of a number is chance.",
            )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside those of model, data and trainer."""
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
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
                "trainer.enable_model_summary": False,
                "checkpoint.monitor": "val/loss",
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
            }
        )
        self._add_switchable(parser, "figures", callbacks.FIGURES)

    @staticmethod
    def _add_switchable(
        parser: LightningArgumentParser, group: str, classes: Mapping[str, type]
    ) -> None:
        """An option ``--GROUP.NAME`` for each class, which is there unless it is set to null."""
        for name, cls in classes.items():
            parser.add_argument(
                f"--{group}.{name}",
                type=cls | None,
                default={"class_path": f"{cls.__module__}.{cls.__qualname__}"},
                help=f"{(cls.__doc__ or '').splitlines()[0]} null: none.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; unlike the original without a warning that ``sys.argv`` is not used."""
        try:
            self.config = parser.parse_args(args)
        except _WrongOptions as error:
            if lower := of_checkpoint(args):
                try:
                    parser.parse_args(lower)
                except _WrongOptions as own:
                    raise UserError(
                        f"{lower[-1]}, or config.yaml of its run, is damaged or from another "
                        f"version of this project ({own})"
                    ) from error
            raise
        self.requeued: Path | None = None
        if self.config.subcommand != "fit" or not slurm.is_restarted():
            return
        config = self.config.fit
        if config.trainer.fast_dev_run:
            return
        # This job has run before; where it has saved a checkpoint, it goes on from that, and not
        # from the one that it began with.
        parents = [Path(config.output_dir) / _name(config)]
        if config.ckpt_path:
            parents.append(runs.folder_of(config.ckpt_path).parent)
        self.requeued = runs.of_job(parents, str(slurm.job()), self.given)
        if self.requeued and runs.last_checkpoint(self.requeued).is_file():
            last = str(runs.last_checkpoint(self.requeued))
            self.config = parser.parse_args(with_layers([*self.typed, "--ckpt_path", last]))

    def _parse_ckpt_path(self) -> None:
        """Nothing: here the checkpoint is the lowest layer, and the command line wins over it."""

    def before_instantiate_classes(self) -> None:
        """Check the options against the checkpoint, and fill in where the run's files go."""
        config = self.config[self.subcommand]
        trust.check_callables(config)
        checks.check_trainer(config.trainer, self.subcommand)
        if config.ckpt_path:
            self.ckpt = checkpoint.read(config.ckpt_path)
            try:
                self._compare(self.ckpt, config)
            except (AttributeError, KeyError, TypeError) as error:
                raise UserError(
                    f"{config.ckpt_path} is damaged, or from another version of this project "
                    f"({type(error).__name__}: {error}): use another one"
                ) from error
        if self.subcommand == "fit":
            self.folder = self._choose_folder(config)
            config.name = self.folder.parent.name
            self.save_config_kwargs = {"given": config.clone(), "replace": self.continues}
        else:
            self.save_config_kwargs = {"given": config}
            self.folder = runs.folder_of(config.ckpt_path)
            config.trainer.enable_checkpointing = False
        config.trainer.default_root_dir = str(self.folder)
        if TorchElasticEnvironment.detect():
            _follow_torchrun(config.trainer)
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            self._place_logger(logger)

    def _compare(self, content: dict[str, Any], config: Namespace) -> None:
        """Check that the checkpoint is one for these options."""
        resume.check_model(content, config)
        if self.subcommand == "fit":
            try:
                resume.check_progress(content, config)
            except resume.Finished as finished:
                if self.requeued is None:
                    raise
                print(f"{finished}: nothing to do")  # in a job with other lines after this one
                raise SystemExit(0) from None
            resume.check_arguments(content, config)
            resume.check_data(content, config)
            self.optimizer_changes = resume.optimizer_changes(content, config)

    def _place_logger(self, logger: Any) -> None:
        """Let a tracker write into the run's folder, and go on where it was if the run does."""
        arguments = getattr(logger, "init_args", None)
        if arguments is None or arguments.get("save_dir") != ".":
            return
        arguments.save_dir = str(self.folder)
        if logger.class_path.endswith("TensorBoardLogger"):
            arguments.name, arguments.version = "tensorboard", ""
            if self.continues and self.ckpt:
                logger.dict_kwargs = {"purge_step": self.ckpt["global_step"]}
        elif logger.class_path.endswith("WandbLogger"):
            if arguments.get("name") is None:
                arguments.name = f"{self.folder.parent.name}/{self.folder.name}"
            if self.subcommand == "fit":
                if arguments.get("id") is None:
                    known = runs.record(self.folder).get("wandb_id") if self.continues else None
                    arguments.id = known or secrets.token_hex(4)
                self.remembered["wandb_id"] = arguments.id

    def _choose_folder(self, config: Namespace) -> Path:
        """The folder of the run that is continued, or the first free ``version_N``.

        A run is continued from the newest of its checkpoints, whose log and files nothing is lost
        of; a training from an older one is another run.
        """
        parent = Path(config.output_dir) / _name(config)
        if config.trainer.fast_dev_run:
            return runs.next_free(parent)
        if slurm.job():
            self.remembered |= {"job": slurm.job(), "command": self.given}
        if self.requeued:
            self.continues = True
            return self.requeued
        if config.ckpt_path and runs.is_newest(config.ckpt_path):
            folder = runs.folder_of(config.ckpt_path)
            named = any(flag in ("--name", "--output_dir") for _, flag in flags(self.typed))
            if not named or parent.absolute() == folder.parent:
                self.continues = True
                return folder
        if not _is_first_process():
            # The name may be another one than that of the first process, whose files alone are
            # ever seen; Lightning sends its folders of the log and of checkpoints to the others.
            return runs.next_free(parent)
        folder = runs.reserve(parent)
        self.reserved = [folder, parent, parent.parent]
        return folder

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; see that they are what the checkpoint is about."""
        path = self.config[self.subcommand].ckpt_path
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            message = usage.sentence(error, TRACEBACK)
            typed = {flag.rpartition(".")[2] for flag in re.findall(r"--([\w.]+)", self.given)}
            if not path or isinstance(error, UserError) or typed & set(re.findall(r"\w+", message)):
                raise
            raise UserError(f"what {path} describes cannot be built ({message})") from error
        if path:
            held = (self.ckpt or {})["hyper_parameters"]
            shape, classes = held.get("image_shape"), held.get("num_classes")
            if isinstance(shape, list | tuple) and tuple(shape) != self.model.image_shape:
                raise UserError(
                    f"{path} is of a model of {tuple(shape)} images, but the data have "
                    f"{self.model.image_shape}: choose data of that shape, or of ImageFolder the "
                    "--data.size and --data.color"
                )
            if self.model.conditional and classes and classes != self.model.num_classes:
                raise UserError(
                    f"{path} is of a model of {classes} classes, but the data have "
                    f"{self.model.num_classes}: choose data with the same classes"
                )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, with the CSV logger first (its folder is the run's) and the pictures."""
        config = self.config_init[self.subcommand]
        given = config.trainer.logger
        loggers: list[Logger] = given if isinstance(given, list) else [given] if given else []
        loggers = [logger for logger in loggers if isinstance(logger, Logger)]
        own = config.trainer.callbacks or []
        wanted = list(own) if isinstance(own, list) else [own]
        if self.subcommand == "fit" and given is not False:
            keep = self.ckpt.get("log_rows", 0) if self.ckpt and self.continues else 0
            loggers = [MetricsLog(self.folder, keep), *loggers]
        own_bar = any(isinstance(callback, ProgressBar) for callback in wanted)
        if config.trainer.enable_progress_bar is not False and not own_bar:
            # A bar drawn into a log file is thousands of lines.
            wanted.append(_ProgressBar() if sys.stdout.isatty() else _EpochLines())
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
        if self.subcommand == "fit":
            wanted.append(_OptimizerChanges(self.optimizer_changes))
            wanted += [figure for figure in vars(config.figures).values() if figure]
            if config.trainer.enable_checkpointing is not False:
                wanted.append(config.checkpoint)
                if config.checkpoint.save_last:
                    wanted.append(config.last)
                    config.checkpoint.save_last = False  # not by two callbacks
        elif self.subcommand in ("test", "validate"):
            wanted += [measure for measure in vars(config.metrics).values() if measure]
            how = {"command": self.given, "checkpoint": str(Path(config.ckpt_path).absolute())}
            wanted.append(_Reporter(self.folder, how))
        elif self.subcommand == "predict":
            wanted.append(callbacks.PredictionWriter(self.folder / "predictions"))
        kwargs["plugins"] = _plugins(config.trainer.plugins, config.trainer.strategy)
        trainer = super().instantiate_trainer(logger=loggers or False, callbacks=wanted, **kwargs)
        if TorchElasticEnvironment.detect() and trainer.world_size != int(os.environ["WORLD_SIZE"]):
            raise UserError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, but --trainer.devices and "
                f"--trainer.num_nodes ask for {trainer.world_size}: leave these two options out"
            )
        checks.check_devices(trainer)
        return trainer

    # What is printed and written at the end

    def before_fit(self) -> None:
        """Check what can be checked before any file is changed, and start the clock."""
        self.started = time.monotonic()
        if self.ckpt is not None:
            weights = self.ckpt["state_dict"]
            checkpoint.check_fits(self.config[self.subcommand].ckpt_path, weights, self.model)
            # Not the weights, which hold on to a file that will be replaced.
            self.ckpt = {key: self.ckpt[key] for key in ("global_step", "hyper_parameters")}
        if not self.trainer.is_global_zero:
            return
        size = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        name = type(self.model).__name__
        begun = "Training" if self.ckpt is None else f"From step {self.ckpt['global_step']}:"
        print(f"{begun} {name}, {size:,} parameters; everything goes to {self.folder}")

    def fit(self, **kwargs: Any) -> None:
        """Train; where that ends early, say what there is and what to type next."""
        cpu.spare()
        try:
            with self._folder_held(), self._resuming(kwargs.get("ckpt_path")):
                self.trainer.fit(**kwargs)
        except Interrupted as stop:
            if not self.trainer.is_global_zero:
                raise SystemExit(0) from None  # the first process speaks for all
            if stop.received == REQUEUE:
                print(f"Requeued; job {slurm.job()} goes on from {_short(stop.saved)}.")
                raise SystemExit(slurm.REQUEUED) from None
            self._end(f"stopped by {stop.received.name}", 128 + stop.received)
        except NonFinite as error:
            if not self.trainer.is_global_zero:  # all processes have found it
                raise SystemExit(1) from None
            last = runs.last_checkpoint(self.folder)
            first = f"the last good checkpoint is {_short(last)}: continue from it"
            raise UserError(
                f"{error}; {first if last.is_file() else 'no checkpoint yet: start again'} with a "
                "smaller --model.optimizer.lr, or leave such steps out with "
                "--model.skip_non_finite true"
            ) from error
        except SystemExit:  # before the first batch, or Ctrl-C for the second time
            if not self.trainer.interrupted:
                raise
            self._end("interrupted", 143 if self.trainer.received_sigterm else 130)
        finally:
            LISTENER.stop()

    def _folder_held(self) -> contextlib.AbstractContextManager[None]:
        """What has to be there while a run is trained, in the first process."""
        fast = self.config[self.subcommand].trainer.fast_dev_run
        if fast or not self.trainer.is_global_zero:
            return contextlib.nullcontext()
        if any(isinstance(c, LastCheckpoint | BestCheckpoint) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            check_room(self.folder, self.model)
        if self.remembered:
            runs.remember(self.folder, **self.remembered)
        return runs.held(self.folder)

    def _end(self, why: str, code: int) -> NoReturn:
        if not self.trainer.is_global_zero:
            raise SystemExit(code)
        last, config = runs.last_checkpoint(self.folder), self.folder / "config.yaml"
        hint = f"vae fit --ckpt_path {_short(last)}" if last.is_file() else "no checkpoint yet"
        if last.is_file() and config.is_file() and trust.names_others(config.read_text()):
            hint += f" --config {_short(config)}"
        start = "\n" if sys.stderr.isatty() else ""  # below a progress bar
        epoch = self.trainer.current_epoch
        print(f"{start}vae: {why} in epoch {epoch}; to go on: {hint}", file=sys.stderr)
        raise SystemExit(code)

    @contextlib.contextmanager
    def _resuming(self, ckpt_path: str | None) -> Iterator[None]:
        """Say that it is about the checkpoint, where something fails before training goes on."""
        try:
            yield
        except Exception as error:
            told = isinstance(error, UserError) or "loading state_dict" in str(error)
            if ckpt_path is None or told or self.model.began:
                raise
            raise UserError(
                f"{ckpt_path} cannot be resumed ({type(error).__name__}: {error}): it is damaged, "
                "or from another version of this project; use another one"
            ) from error

    def after_fit(self) -> None:
        """Print where everything is, the key numbers, and what to type next."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        took = timedelta(seconds=round(time.monotonic() - self.started))
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        # Processes that were forked or spawned keep both the epoch and the results to themselves.
        to_epoch = f" to epoch {self.trainer.current_epoch}" if self.model.results else ""
        print(f"\nTrained{to_epoch} in {took}.")
        if self.model.skipped:
            print(f"Left out:    {self.model.skipped} updates that were not finite")
        if self.model.results:
            print("On the validation images:", *report.lines(self.model), sep="\n")
        print(f"Run folder:  {_short(self.folder)}")
        if best:
            print(f"Next:        vae test --ckpt_path {_short(best)}")

    def after_predict(self) -> None:
        """Print where the predictions are."""
        if self.trainer.is_global_zero:
            print(f"\nPredictions: {_short(self.folder / 'predictions')}")

    def before_validate(self) -> None:
        """See `before_test`."""
        self.before_test()

    def before_test(self) -> None:
        """Set the seed of the noise."""
        self.model.evaluation_seed = self.config_init[self.subcommand].evaluation_seed

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True  # never pickled code, whoever the checkpoint is from
        if "verbose" in kwargs:
            kwargs["verbose"] = False  # a shorter table is printed at the end
        if "return_predictions" in kwargs:
            kwargs["return_predictions"] = False  # they are on disk
        return kwargs


class _Reporter(pl.Callback):
    """Prints the results of ``vae test`` and ``vae validate``, and writes them.

    A callback, because with some strategies only the process that ran the model knows them.

    Args:
        folder: The folder of the run.
        how: The command and the checkpoint.
    """

    def __init__(self, folder: Path, how: dict[str, str]) -> None:
        self.folder = folder
        self.how = how

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: pl.Trainer, model: Any, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        content = report.document(model, trainer.datamodule, **self.how, split=stage)  # type: ignore[attr-defined]
        where = f"{content['images']:,} {stage} images of {content['data']}"
        # Printed first: a folder that cannot be written to must not cost the numbers.
        print("", f"{content['model']} on {where}:", *report.lines(model), sep="\n", flush=True)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = report.write(content, self.folder / stage)
            print(f"Metrics:     {_short(path)}")


class _OptimizerChanges(pl.Callback):
    """Puts changed options, such as the learning rate, into an optimizer that was restored.

    Args:
        changes: New values by the name of the option.
    """

    def __init__(self, changes: dict[str, Any]) -> None:
        self.changes = changes

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update(self.changes)


class _ProgressBar(TQDMProgressBar):
    """Lightning's, without the version of the logger."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class _EpochLines(pl.Callback):
    """A line per epoch, for output that is not a terminal."""

    first_step = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.first_step = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking:
            # Where no step of this epoch was written, it would be that of an earlier one.
            is_new = getattr(pl_module, "written_step", -1) >= self.first_step
            names = ("train/loss", "val/loss") if is_new else ("val/loss",)
            known = [name for name in names if name in trainer.callback_metrics]
            values = [f"{name} {trainer.callback_metrics[name]:.4f}" for name in known]
            print(f"epoch {trainer.current_epoch}: {', '.join(values)}", flush=True)


def _name(config: Namespace) -> str:
    """The name of a run: by default that of the model, BetaVAE -> beta_vae."""
    model_name = config.model.class_path.rpartition(".")[2]
    name = config.name or re.sub("(?<=[a-z])(?=[A-Z])", "_", model_name).lower()
    if Path(name).name != name or name == "..":
        raise UserError(
            f"--name {name} must be the name of a folder; --output_dir says where that folder is"
        )
    return name


def _plugins(given: Any, strategy: Any) -> list[Any]:
    """The user's plugins, and those that keep a run from being lost."""
    plugins = given if isinstance(given, list) else [given] if given else []
    if not any(isinstance(p, CheckpointIO) for p in plugins) and "deepspeed" not in str(strategy):
        plugins = [*plugins, SafeCheckpointIO()]
    own = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect() and not own:
        # Lightning would save in a signal handler, where processes wait for one another for ever.
        plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
    return plugins


def _follow_torchrun(trainer: Namespace) -> None:
    """As many devices and nodes as torchrun started processes for, unless the options say more."""
    processes, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if trainer.devices == "auto":
        trainer.devices = here
    if trainer.num_nodes == 1:
        trainer.num_nodes = processes // here


def _is_first_process() -> bool:
    """Whether this process is the first of all, as far as can be known before they meet."""
    # Lightning looks at RANK (torchrun), LOCAL_RANK (its own launcher) and SLURM_PROCID; on every
    # node its own launcher begins with a process that has none of them.
    node = os.environ.get("NODE_RANK", "0")
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


def _short(path: str | Path) -> str:
    """A path relative to the current folder, if it is inside."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _quieten() -> None:
    """Silence what Lightning says in every run, and what is no use to a person."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for message in (
        ".*is smaller than the logging interval.*",  # of short trainings
        r".isinstance\(treespec, LeafSpec\)",  # Lightning-AI/pytorch-lightning#21326
        ".*callbacks used to create the checkpoint need to be provided",  # of vae test, no need
        "Experiment logs directory .* is not empty",  # another tracker made it just before
        "Checkpoint directory .* exists and is not empty",  # of a run that is continued
        ".*not supported by the model summary",  # of mixed precision
        "The `srun` command is available",  # on every machine of a cluster, outside of a job
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", checkpoint.RENAMED)
