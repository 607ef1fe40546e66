"""The ``vae`` command: LightningCLI, and what it needs so that its options do what they say."""

import logging
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from vae_lightning import callbacks, checkpoint, checks, report, trust, usage
from vae_lightning.data import ImageData
from vae_lightning.errors import UserError
from vae_lightning.layers import LINKED, named_by_user, of_checkpoint, run_folder, with_layers
from vae_lightning.metrics import MEASURES
from vae_lightning.models import BaseVAE

TRACEBACK = "VAE_TRACEBACK"
"""Environment variable that shows where an error came from."""


def run(args: Sequence[str]) -> None:
    """Run ``vae`` with arguments that begin with a command.

    Raises:
        SystemExit: With code 2 for wrong options, 1 for an error that is the user's to mend.
    """
    try:
        layered = with_layers(list(args))
        with trust.importing_only(named_by_user(args)):
            _Command(layered, shlex.join(["vae", *args]))
    except _WrongOptions as error:
        if os.environ.get(TRACEBACK):
            raise
        _fail(str(error), 2)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        _fail(usage.sentence(error, TRACEBACK), 1)


class _WrongOptions(Exception):
    """Options that cannot be parsed."""


def _fail(message: str, code: int) -> NoReturn:
    print(f"vae: error: {message}", file=sys.stderr)
    raise SystemExit(code)


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
        **kwargs: See `SaveConfigCallback`.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, given: Namespace, **kwargs: Any
    ) -> None:
        super().__init__(parser, given, **kwargs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            # With it, a run that is repeated from its configuration would resume instead.
            self.config.pop("ckpt_path", None)
            super().setup(trainer, pl_module, stage)

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
        args: The command and its options, all layers.
        given: The command line as it was typed, for the record.
    """

    subcommand: str
    model: BaseVAE
    datamodule: ImageData

    def __init__(self, args: list[str], given: str = "") -> None:
        _quieten()
        self.given = given
        self.optimizer_changes: dict[str, Any] = {}
        self.reserved: list[Path] = []
        self.held: dict[str, Any] = {}
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
                args=args,
            )
        except BaseException:
            self._leave_nothing()
            raise
        finally:
            for folder in self.reserved:  # of a run that did not begin
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _leave_nothing(self) -> None:
        """Take away what a run has written that failed before its first batch."""
        files = [path for folder in self.reserved[:1] for path in folder.iterdir()]
        if not self._began() and {path.name for path in files} <= {"config.yaml", "hparams.yaml"}:
            for path in files:
                path.unlink()

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
        parser.add_class_arguments(ModelCheckpoint, "checkpoint")
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

    def _parse_ckpt_path(self) -> None:
        """Nothing: here the checkpoint is the lowest layer, and the command line wins over it."""

    def before_instantiate_classes(self) -> None:
        """Check the options against the checkpoint, and fill in where the run's files go."""
        config = self.config[self.subcommand]
        trust.check_callables(config)
        checks.check_trainer(config.trainer, self.subcommand)
        model_name = config.model.class_path.rpartition(".")[2]
        if config.ckpt_path:
            content = checkpoint.read(config.ckpt_path)
            self.held = content["hyper_parameters"]
            try:
                self._check_checkpoint(content, model_name, config)
            except (AttributeError, KeyError, TypeError) as error:
                raise UserError(
                    f"{config.ckpt_path} is damaged, or from another version of this project "
                    f"({type(error).__name__}: {error}): use another one"
                ) from error
        if self.subcommand == "fit":
            # BetaVAE -> beta_vae
            config.name = config.name or re.sub("(?<=[a-z])(?=[A-Z])", "_", model_name).lower()
            if Path(config.name).name != config.name or config.name == "..":
                raise UserError(
                    f"--name {config.name} must be the name of a folder; "
                    "--output_dir says where that folder is"
                )
            self.save_config_kwargs = {"given": config.clone()}
            self.folder = self._reserve_folder(Path(config.output_dir) / config.name, config)
        else:
            self.save_config_kwargs = {"given": config}
            self.folder = run_folder(config.ckpt_path)
            config.trainer.enable_checkpointing = False
        config.trainer.default_root_dir = str(self.folder)
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            arguments = getattr(logger, "init_args", None)
            if arguments is None or arguments.get("save_dir") != ".":
                continue
            arguments.save_dir = str(self.folder)
            if logger.class_path.endswith("TensorBoardLogger"):
                arguments.name, arguments.version = "tensorboard", ""
            elif logger.class_path.endswith("WandbLogger") and arguments.get("name") is None:
                arguments.name = f"{config.name or self.folder.parent.name}/{self.folder.name}"

    def _reserve_folder(self, parent: Path, config: Namespace) -> Path:
        """The first free ``version_N``, made at once so that no other run takes it as well."""
        version = 0
        while (parent / f"version_{version}").exists():
            version += 1
        folder = parent / f"version_{version}"
        if getattr(rank_zero_only, "rank", 0) != 0 or config.trainer.fast_dev_run:
            return folder  # only what the first process writes is ever seen
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run's folder cannot be made in {parent} ({error.strerror}): choose another "
                "--output_dir or --name"
            ) from error
        try:
            folder.mkdir()
        except FileExistsError:
            return self._reserve_folder(parent, config)
        self.reserved = [folder, parent, parent.parent]
        return folder

    def _check_checkpoint(
        self, content: dict[str, Any], model_name: str, config: Namespace
    ) -> None:
        held = content["hyper_parameters"]["_class_path"].rpartition(".")[2]
        if model_name != held:
            raise UserError(
                f"{config.ckpt_path} holds a {held}, but the options ask for a {model_name}: "
                "leave out --model, and --config files that name another model"
            )
        if self.subcommand != "fit":
            return
        if not content.get("optimizer_states"):
            raise UserError(
                f"{config.ckpt_path} holds weights only and cannot be resumed: give a checkpoint "
                "with the state of the optimizer, such as last.ckpt"
            )
        self._compare_optimizers(content["hyper_parameters"], config)
        done = content["epoch"] + 1
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        limit = config.trainer.max_epochs
        if progress["is_last_batch"] and limit is not None and 0 <= limit <= done:
            raise UserError(
                f"{config.ckpt_path} has been trained for {done} epochs already: give a "
                f"--trainer.max_epochs larger than {limit}"
            )

    def _compare_optimizers(self, held: dict[str, Any], config: Namespace) -> None:
        """Find what the options change of the optimizer whose state will be restored."""
        asked = config.model.init_args.as_dict()
        old, new = (part["optimizer"].get("init_args") or {} for part in (held, asked))
        changed = {k: v for k, v in new.items() if k in old and checkpoint.portable(v) != old[k]}
        same_class = all(
            checkpoint.portable(asked[key] or {}).get("class_path", "").rpartition(".")[2]
            == (held[key] or {}).get("class_path", "").rpartition(".")[2]
            for key in ("optimizer", "lr_scheduler")
        )
        if not same_class or (changed and asked["lr_scheduler"]):
            raise UserError(
                "a resumed training keeps its optimizer and learning-rate scheduler: leave out the "
                "options that change them, or start anew"
            )
        self.optimizer_changes = changed

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
            shape, classes = self.held.get("image_shape"), self.held.get("num_classes")
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
        wanted = list(config.trainer.callbacks or [])
        if self.subcommand == "fit" and given is not False:
            parent, name = self.folder.parent.parent, self.folder.parent.name
            csv = CSVLogger(str(parent), name=name, version=self.folder.name)
            loggers = [csv, *loggers]
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
        elif self.subcommand in ("test", "validate"):
            wanted += [measure for measure in vars(config.metrics).values() if measure]
            how = {"command": self.given, "checkpoint": str(Path(config.ckpt_path).absolute())}
            wanted.append(_Reporter(self.folder, how))
        elif self.subcommand == "predict":
            wanted.append(callbacks.PredictionWriter(self.folder / "predictions"))
        trainer = super().instantiate_trainer(logger=loggers or False, callbacks=wanted, **kwargs)
        checks.check_devices(trainer)
        return trainer

    # What is printed and written at the end

    def before_fit(self) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        if self.trainer.is_global_zero:
            size = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
            name = type(self.model).__name__
            print(f"Training {name}, {size:,} parameters; everything goes to {self.folder}")

    def fit(self, **kwargs: Any) -> None:
        """Train; after Ctrl-C say what there is, with the exit code of an interrupted command."""
        _spare_the_cpu()
        try:
            with self._resuming(kwargs.get("ckpt_path")):
                self.trainer.fit(**kwargs)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            last = self.folder / "checkpoints" / "last.ckpt"
            hint = f"vae fit --ckpt_path {_short(last)}" if last.is_file() else "no checkpoint yet"
            _fail(f"interrupted in epoch {self.trainer.current_epoch}; to go on: {hint}", 130)

    def _began(self) -> bool:
        """Whether a training got as far as its first batch."""
        watchers = getattr(getattr(self, "trainer", None), "callbacks", [])
        return any(watcher.began for watcher in watchers if isinstance(watcher, _OptimizerChanges))

    @contextmanager
    def _resuming(self, ckpt_path: str | None) -> Iterator[None]:
        """Say that it is about the checkpoint, where something fails before training goes on."""
        try:
            yield
        except Exception as error:
            told = isinstance(error, UserError) or "loading state_dict" in str(error)
            if ckpt_path is None or told or self._began():
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
        print(f"\nTrained to epoch {self.trainer.current_epoch} in {took}.")
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

    Attributes:
        began: Whether all is restored.
    """

    def __init__(self, changes: dict[str, Any]) -> None:
        self.changes = changes
        self.began = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = True

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

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking:
            names = ("train/loss", "val/loss")
            known = [name for name in names if name in trainer.callback_metrics]
            values = [f"{name} {trainer.callback_metrics[name]:.4f}" for name in known]
            print(f"epoch {trainer.current_epoch}: {', '.join(values)}", flush=True)


def _spare_the_cpu() -> None:
    """Save what costs time on a CPU and brings nothing."""
    # The moving averages of Adam run out into numbers below 1e-38, which take a hundred times as
    # long to multiply, for every pixel that is hardly ever on.
    torch.set_flush_denormal(True)
    if not torch.cuda.is_available():
        # Every step of an optimiser asks for a GPU; with this nobody looks for its driver again.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


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
        "The dirpath has changed",  # a resumed run writes into a folder of its own
        ".*not supported by the model summary",  # of mixed precision
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", checkpoint.RENAMED)
