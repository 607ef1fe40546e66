"""``vae fit``, ``validate``, ``test`` and ``predict``: LightningCLI over plain models."""

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from vae_lightning import __version__
from vae_lightning.checkpoint import Checkpoint, check_weights
from vae_lightning.cli import (
    allowed_classes,
    config_sources,
    effect_checks,
    error_messages,
    finders,
    init_from,
    option_list,
    parser,
    paths,
    resume,
    run_folders,
    trainer_checks,
    trainer_setup,
)
from vae_lightning.cli.advice import fill_epochs
from vae_lightning.cli.building import build_module
from vae_lightning.cli.callbacks import ChangedOptions, Reporter, SaveConfig
from vae_lightning.cli.command_line import CommandLine
from vae_lightning.cli.folder_choice import choose_folder, find_requeued_run
from vae_lightning.cli.parser import Parser, WrongOptions
from vae_lightning.cli.run_folders import RunFolder
from vae_lightning.cli.terminal import list_left_out
from vae_lightning.cli.training_run import TrainingRun
from vae_lightning.data import ImageData
from vae_lightning.errors import UserError
from vae_lightning.models.image_model import ImageModel
from vae_lightning.models.loading import find_imported
from vae_lightning.training import compat
from vae_lightning.training.metrics_log import MetricsLog
from vae_lightning.training.module import LitVAE
from vae_lightning.training.predictions import PredictionWriter

_SPLIT = "--data.predict_split"

_NOT_ABOUT_IMAGES = {"batch_size", "num_workers", "memory_limit", "predict_split"}
"""Arguments of data modules that do not change the images."""


class Command(LightningCLI):
    """A command of ``vae`` that needs Lightning.

    Args:
        command_line: The command and its options.

    Attributes:
        vae: The model.
        model: The module that trains and measures it.
        folder: Folder of the run, once it is chosen.
    """

    subcommand: str
    predictions: PredictionWriter
    model: LitVAE
    datamodule: ImageData

    def __init__(self, command_line: CommandLine) -> None:
        self.command_line = command_line
        self.checkpoint: Checkpoint | None = command_line.checkpoint
        self.folder: RunFolder | None = None
        self.requeued: Path | None = None
        self.optimizer_changes: list[dict[str, Any]] = []
        self.finders: dict[str, Namespace] = {}
        compat.keep_defaults_of_changed_classes()
        compat.check_ckpt_path_hook()
        try:
            super().__init__(
                model_class=LitVAE,
                datamodule_class=pl.LightningDataModule,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                seed_everything_default=0,
                parser_class=Parser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=[command_line.command, *command_line.parser_arguments],
            )
        except BaseException as error:
            self._clean_up(error)
            raise
        finally:
            if self.folder:
                self.folder.remove_if_empty()

    def _clean_up(self, error: BaseException) -> None:
        """End other processes, and clean up a run that failed before its first batch."""
        trainer = getattr(self, "trainer", None)
        interrupted = trainer is not None and trainer.interrupted and self.subcommand != "fit"
        if isinstance(error, SystemExit) and interrupted:
            # Lightning exits with code 1 and says nothing.
            print("\nvae: interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        if trainer is not None and isinstance(error, Exception):
            compat.end_processes(trainer)
        if self.folder and not getattr(getattr(self, "model", None), "began", False):
            self.folder.remove_traces()

    # Options

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command that was typed: a parser of options takes a while to build."""
        name = self.command_line.command
        # These are chosen below: never pickled code, and nothing printed twice or kept in memory.
        # The option for the checkpoint is our own: no keywords, which the help would offer.
        fixed = {"weights_only", "verbose", "return_predictions", "ckpt_path"}
        return {name: LightningCLI.subcommands()[name] | fixed}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Create a parser that takes configurations by name."""
        kwargs.setdefault("dump_header", [f"vae_lightning=={__version__}"])
        kwargs.setdefault("prog", "vae")
        made = self.parser_class(**kwargs)
        made.add_argument(
            "-c",
            "--config",
            action=parser.ConfigAction,
            help="Configuration: a YAML file, or the name of a bundled one.",
        )
        return made

    def add_core_arguments_to_parser(self, parser_: LightningArgumentParser) -> None:
        """Add options of trainer, data, model, optimizers and training."""
        self.command_parser = parser_
        parser.add_core_arguments(parser_, lambda data: prepare_data(self.checkpoint, data))

    def add_arguments_to_parser(self, parser_: LightningArgumentParser) -> None:
        """Add options of the run."""
        parser.add_run_arguments(parser_, self.command_line.command)

    def parse_arguments(self, parser_: LightningArgumentParser, args: Any) -> None:
        """Parse the options over the settings of the checkpoint or the default configuration."""
        self._set_defaults()
        self.config = self._parse(args)
        if self.config.subcommand == "fit" and self._continue_requeued_run():
            self._set_defaults()
            self.config = self._parse(args)
        # An older configuration file may hold another one.
        path = self.checkpoint and str(self.checkpoint.path)
        self.config[self.config.subcommand].ckpt_path = path
        trainer_checks.check_seed(self.config[self.config.subcommand].seed_everything)

    def _set_defaults(self) -> None:
        settings = config_sources.lower_settings(self.command_line)
        for name, value in config_sources.flatten(settings).items():
            try:
                self.command_parser.set_defaults({name: value})
            except KeyError as error:
                names = parser.names(self.command_parser)
                where = "the default configuration"
                if self.checkpoint:
                    where = str(run_folders.folder_of(self.checkpoint) / "config.yaml")
                raise UserError(f"{where}: {option_list.unknown_option(name, names)}") from error

    def _parse(self, args: list[str]) -> Namespace:
        """Parse the command line.

        Raises:
            UserError: If the settings of the checkpoint are wrong.
            WrongOptions: If options are wrong.
        """
        try:
            if self.command_line.has_parts_of("--critic_optimizer"):
                self._start_critic_optimizer_from_optimizer()
            return self.parser.parse_args(args)
        except WrongOptions as error:
            explained = self._explain(error)
            if self.checkpoint and self.checkpoint.record.data:
                try:
                    self.parser.parse_args([args[0], "--ckpt_path", str(self.checkpoint.path)])
                except WrongOptions as own:
                    raise UserError(
                        f"the settings in {self.checkpoint.path} and in config.yaml of its run "
                        f"cannot be used ({self._explain(own)}): they were changed, or are from "
                        "another version of this project"
                    ) from error
            raise explained from error

    def _explain(self, error: WrongOptions) -> WrongOptions:
        return WrongOptions(error_messages.explain(str(error), parser.names(self.command_parser)))

    def _start_critic_optimizer_from_optimizer(self) -> None:
        """Let ``--critic_optimizer.lr`` change an optimizer that is otherwise like the model's."""
        if self.command_line.has("--critic_optimizer"):
            return
        rest = self.command_line.without_parts_of("--critic_optimizer")
        config = self.parser.parse_args([self.command_line.command, *rest])
        chosen = config[self.command_line.command]
        if chosen.critic_optimizer is None:
            self.command_parser.set_defaults({"critic_optimizer": chosen.optimizer.as_dict()})

    def _continue_requeued_run(self) -> bool:
        """Continue what this job has saved before it was requeued, if there is such a run."""
        self.requeued = find_requeued_run(self.command_line, self.config.fit)
        if not self.requeued or not run_folders.last_checkpoint(self.requeued).is_file():
            return False
        last = run_folders.last_checkpoint(self.requeued)
        self.command_line = self.command_line.with_checkpoint(last)
        self.checkpoint = self.command_line.checkpoint
        return True

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the checkpoint is below the command line, see `config_sources`."""

    # Building

    def before_instantiate_classes(self) -> None:
        """Check the options against the checkpoint, and fill in where the run's files go."""
        config = self.config[self.subcommand]
        allowed_classes.check_callables(config)
        trainer_checks.check_trainer(config.trainer, self.subcommand)
        is_named = self.command_line.has("--data.root")
        if self.subcommand == "predict" and is_named and not self.command_line.has(_SPLIT):
            _predict_all(config.data)
        effect_checks.check_flags(self.command_line, config)
        paths.make_absolute(config)
        if self.checkpoint:
            self._compare(self.checkpoint, config)
        if self.subcommand == "fit":
            self.finders = finders.take(self.command_line, config)
            self.folder = choose_folder(self.command_line, config, self.requeued)
            config.name = self.folder.path.parent.name
        else:
            assert self.checkpoint is not None
            self.folder = RunFolder(run_folders.folder_of(self.checkpoint))
            config.trainer.enable_checkpointing = False
        self.save_config_kwargs = {"given": config.clone(), "continues": self.folder.continues}
        config.trainer.default_root_dir = str(self.folder.path)
        trainer_setup.follow_torchrun(config.trainer)
        step = self.checkpoint.global_step if self.checkpoint else None
        trainer_setup.place_loggers(config.trainer.logger, self.folder, step, self.subcommand)

    def _compare(self, held: Checkpoint, config: Namespace) -> None:
        """Check that the checkpoint is one for these options."""
        resume.check_model_class(held, config)
        if self.subcommand == "fit":
            with resume.completeness_reported(self.requeued is not None):
                resume.check_progress(held, config)
            effect_checks.check_seed(self.command_line, held, config.seed_everything)
            resume.check_model(held, config)
            resume.check_data(held, config)
            self.optimizer_changes = resume.optimizer_changes(held, config)

    def instantiate_classes(self) -> None:
        """Build data, model, module and trainer, in this order."""
        path = self.checkpoint and self.checkpoint.path
        if self.finders:
            given = self.save_config_kwargs["given"]
            finders.find_options(self.finders, self.parser, self.config, given)
        try:
            self.config_init = self.parser.instantiate_classes(self.config)
            config = self.config_init[self.subcommand]
            self.datamodule, self.vae = config.data, config.model
            self.model = build_module(config)
        except (TypeError, ValueError) as error:
            message = error_messages.sentence(error)
            is_typed = self.command_line.argument_names & set(re.findall(r"\w+", message))
            if not path or isinstance(error, UserError) or is_typed:
                raise
            raise UserError(f"what {path} describes cannot be built ({message})") from error
        adopt_scaling(self.datamodule, self.vae)
        if self.checkpoint:
            _check_fit(self.checkpoint, self.vae, self.datamodule)
        elif self.command_line.init_from:
            names = getattr(self.datamodule, "class_names", None)
            print(init_from.load_weights(self.command_line.init_from, self.vae, names))
        effect_checks.check_parts(self.command_line, "figures", vars(config.figures), self.vae)
        if "metrics" in config:
            given = self.command_line, "metrics", vars(config.metrics), self.vae, self.datamodule
            effect_checks.check_parts(*given)
        if self.subcommand == "fit":
            assert self.folder is not None
            self.model.run = self.folder.identify()
            given = self.save_config_kwargs["given"]
            fill_epochs(self.datamodule, self.config_init.fit, self.config.fit, given)
        self.trainer = self.instantiate_trainer()
        if self.checkpoint and self.subcommand == "fit":
            with resume.completeness_reported(self.requeued is not None):
                resume.check_callbacks(self.checkpoint, self.config.fit, self.trainer)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer with its loggers and callbacks.

        The log of the run comes first, because its folder is the run's.
        """
        assert self.folder is not None
        config = self.config_init[self.subcommand]
        given = config.trainer.logger
        loggers = [logger for logger in trainer_setup.as_list(given) if isinstance(logger, Logger)]
        if self.subcommand == "fit" and given is not False:
            is_resumed = self.checkpoint and self.folder.continues
            keep = self.checkpoint.record.log_rows if self.checkpoint and is_resumed else 0
            loggers = [MetricsLog(self.folder.path, keep), *loggers]
        callbacks = trainer_setup.as_list(config.trainer.callbacks)
        shown, bar = trainer_setup.progress(callbacks, config.trainer.enable_progress_bar)
        trainer = super().instantiate_trainer(
            logger=loggers or False,
            callbacks=[*callbacks, *shown, *_callbacks(self, config)],
            enable_progress_bar=bar,
            plugins=trainer_setup.plugins(config.trainer.plugins, config.trainer.strategy),
            **kwargs,
        )
        trainer_setup.check_torchrun(trainer)
        trainer_checks.check_devices(trainer)
        return trainer

    # Running

    @property
    def _ckpt_path(self) -> str | None:
        path: str | None = self.config_init[self.subcommand].ckpt_path
        return path

    def fit(self, **kwargs: Any) -> None:
        """Train."""
        assert self.folder is not None
        step = self.checkpoint.global_step if self.checkpoint else None
        # Its weights hold on to a file that will be replaced.
        self.command_line = self.checkpoint = None  # type: ignore[assignment]
        run = TrainingRun(self.trainer, self.model, self.folder)
        run.run(step, **kwargs, ckpt_path=self._ckpt_path, weights_only=True)

    def validate(self, **kwargs: Any) -> None:
        """Measure the model on the validation images."""
        self.model.evaluation_seed = self.config_init[self.subcommand].evaluation_seed
        self.trainer.validate(**kwargs, ckpt_path=self._ckpt_path, weights_only=True, verbose=False)

    def test(self, **kwargs: Any) -> None:
        """Measure the model on the test images."""
        self.model.evaluation_seed = self.config_init[self.subcommand].evaluation_seed
        self.trainer.test(**kwargs, ckpt_path=self._ckpt_path, weights_only=True, verbose=False)

    def predict(self, **kwargs: Any) -> None:
        """Write predictions, and print where they are."""
        assert self.folder is not None
        self.trainer.predict(
            **kwargs, ckpt_path=self._ckpt_path, weights_only=True, return_predictions=False
        )
        if self.trainer.is_global_zero:
            _report_predictions(self.predictions.folder, self.datamodule)


def options_parser(command: str) -> LightningArgumentParser:
    """Return the parser of the options of a command, without running it."""

    class Stop(Exception):
        pass

    class OptionsOnly(Command):
        def parse_arguments(self, parser_: LightningArgumentParser, args: Any) -> None:
            raise Stop

    made = OptionsOnly.__new__(OptionsOnly)
    with contextlib.suppress(Stop):
        made.__init__(CommandLine.read([command, "--help"]))  # type: ignore[misc]
    return made.command_parser


def _callbacks(command: Command, config: Namespace) -> list[pl.Callback]:
    """Return the callbacks of a command."""
    assert command.folder is not None
    if command.subcommand == "predict":
        folder = command.folder.path / "predictions"
        command.predictions = PredictionWriter(folder, _source(command.datamodule))
        return [command.predictions]
    if command.subcommand in ("test", "validate"):
        metrics = [metric for metric in vars(config.metrics).values() if metric]
        how = {
            "command": command.command_line.text,
            "checkpoint": str(Path(config.ckpt_path).absolute()),
        }
        return [*metrics, Reporter(command.folder.path, how)]
    return [ChangedOptions(command.optimizer_changes), *trainer_setup.training_callbacks(config)]


def _predict_all(data: Namespace) -> None:
    """Predict every item of files that were named."""
    if getattr(find_imported(data.class_path), "is_users", False):
        data.init_args.predict_split = "all"


def prepare_data(held: Checkpoint | None, data: object) -> bool:
    """Let data be scaled as a checkpoint says, and return whether their values are in [0, 1]."""
    record = held and held.record.known_data
    if record and isinstance(data, ImageData):
        data.use_record(record)
    try:
        # Data modules of other packages yield values in [0, 1], unless they say otherwise.
        return bool(getattr(data, "bounded", True))
    except UserError:  # jsonargparse would change the message; the same error comes with the shape
        return True


def _report_predictions(folder: Path, data: object) -> None:
    """Print where predictions are, and which items are not among them."""
    print(f"\nPredictions: {run_folders.short(folder)}")
    list_left_out(getattr(data, "left_out", ()))


def adopt_scaling(data: object, model: ImageModel) -> None:
    """Let data be scaled as those were that the autoencoder of a prior was trained on."""
    autoencoder = getattr(model, "autoencoder", None)
    record = getattr(autoencoder, "record", None)
    if record is not None and not record.is_8_bit and isinstance(data, ImageData):
        data.use_record(record)


def _source(data: pl.LightningDataModule) -> dict[str, Any]:
    """Return which images a data module predicts, whatever its batches are."""
    if not isinstance(data, ImageData):
        return {"class_path": type(data).__qualname__}
    described = data.describe()
    images = {k: v for k, v in described["init_args"].items() if k not in _NOT_ABOUT_IMAGES}
    return {**described, "init_args": images, "split": data.predict_split}


def _check_fit(held: Checkpoint, model: ImageModel, data: object) -> None:
    """Check that the weights of a checkpoint fit a model and its data.

    Raises:
        UserError: If they do not.
    """
    known = held.record.model.get("init_args", {})
    shape, classes = known.get("image_shape"), known.get("num_classes")
    if isinstance(shape, list | tuple) and tuple(shape) != model.image_shape:
        raise UserError(
            f"{held.path} is of a model of {tuple(shape)} images, but the data have "
            f"{model.image_shape}: choose data of that shape"
            + (", or another --data.size or --data.color" if hasattr(data, "size") else "")
        )
    known_data = held.record.known_data
    if model.conditional and known_data is not None and isinstance(data, ImageData):
        known_data.check_classes(data.class_names or (), getattr(data, "root", None) or "the data")
    if model.conditional and classes and classes != model.num_classes:
        raise UserError(
            f"{held.path} is of a model of {classes} classes, but the data have "
            f"{model.num_classes}: choose data with the same classes"
        )
    check_weights(held, model)
