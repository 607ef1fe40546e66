"""Options that have no effect are refused, rather than ignored silently."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from vae_lightning.checkpoint import Checkpoint
from vae_lightning.cli.command_line import CommandLine
from vae_lightning.errors import UserError
from vae_lightning.models.image_model import ImageModel
from vae_lightning.models.inference import GenerativeModel

_OF_TRAINING = (
    *("--optimizer", "--critic_optimizer", "--lr_scheduler", "--training"),
    *("--checkpoint", "--last", "--figures", "--name", "--output_dir"),
)
"""Options, and groups of options, that only ``vae fit`` obeys."""

_OF_ALL = ("--training.compile",)
"""Options in these groups that every command obeys."""

_TRAINER_OPTIONS = {
    "limit_train_batches": ("fit",),
    "limit_val_batches": ("fit", "validate"),
    "limit_test_batches": ("test",),
    "limit_predict_batches": ("predict",),
    **dict.fromkeys(
        (
            *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
            *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
            *("check_val_every_n_epoch", "val_check_interval", "num_sanity_val_steps"),
            *("log_every_n_steps", "enable_checkpointing", "reload_dataloaders_every_n_epochs"),
        ),
        ("fit",),
    ),
}
"""Commands that obey an option of the trainer which the others ignore."""


def check_flags(command_line: CommandLine, config: Namespace) -> None:
    """Check that each option that was typed has an effect on the command.

    A configuration may hold options for other commands.

    Args:
        command_line: The command line.
        config: The options of the command.

    Raises:
        UserError: If one has no effect.
    """
    command = command_line.command
    if config.trainer.default_root_dir is not None:
        raise UserError(
            "trainer.default_root_dir has no effect: the folder of a run is OUTPUT_DIR/NAME/"
            "version_N, so give --output_dir instead"
        )
    for flag in (option.flag for option in command_line.options):
        group = flag.partition(".")[0]
        commands = _TRAINER_OPTIONS.get(flag.removeprefix("--trainer."), (command,))
        if command != "fit" and group in _OF_TRAINING and flag not in _OF_ALL:
            commands = ("fit",)
        if command not in commands:
            names = " and ".join(f"vae {name}" for name in commands)
            raise UserError(f"{flag} has no effect on vae {command}, only on {names}: leave it out")
        saves = config.trainer.enable_checkpointing is not False
        if command == "fit" and group in ("--checkpoint", "--last") and not saves:
            raise UserError(
                f"{flag} has no effect with --trainer.enable_checkpointing false: leave out one"
            )
        if command == "fit" and group == "--last" and not config.checkpoint.save_last:
            raise UserError(f"{flag} has no effect with --checkpoint.save_last false")


def check_seed(command_line: CommandLine, held: Checkpoint, seed: object) -> None:
    """Check that a training that is continued is not given another seed.

    Raises:
        UserError: If it is.
    """
    if command_line.has("--seed_everything") and seed != held.record.noise_seed:
        raise UserError(
            f"a resumed training keeps its seed: leave out --seed_everything ({held.path} has "
            f"{held.record.noise_seed}), or start a new training"
        )


def check_parts(
    command_line: CommandLine, group: str, parts: Mapping[str, Any], model: ImageModel, *data: Any
) -> None:
    """Check that the figures or metrics that were typed apply to the model.

    Args:
        command_line: The command line.
        group: ``figures`` or ``metrics``.
        parts: The figures or metrics by name, None for those that are switched off.
        model: The model.
        *data: The data module, for metrics.

    Raises:
        UserError: If one does not apply.
    """
    for name, part in parts.items():
        flag = f"--{group}.{name}"
        is_typed = command_line.has(flag) or command_line.has_parts_of(flag)
        if not part or not is_typed:
            continue
        if not isinstance(model, GenerativeModel) or not part.applies_to(model, *data):
            raise UserError(
                f"{flag} has no effect: this {type(model).__name__} or its data lack what it needs"
            )
