"""The short help of the commands that have hundreds of options: the ones that are used most."""

import textwrap

from vae_lightning.cli import option_list
from vae_lightning.cli.bundled_configs import config_folder

_WIDTH = 80
_COLUMN = 30

_HEADS = {
    "fit": "Train a model, with figures. Without options: a VAE on the bundled digits.",
    "validate": "Measure a trained model on the validation images.",
    "test": "Measure a trained model on the test images, and write test/metrics.json in its run.",
    "predict": "Write reconstructions and latents of images to predictions/ in the run.",
}

_EXAMPLES = {
    "fit": (
        "vae fit --config beta_vae --model.beta 8 --trainer.max_epochs 10",
        "vae fit --model VAE --data ImageFolder --data.root photos --data.size 64",
        "vae fit --ckpt_path runs/vae/version_0/checkpoints/last.ckpt --trainer.max_epochs 60",
    ),
    "validate": ("vae validate --ckpt_path runs/vae/version_0/checkpoints/best.ckpt",),
    "test": (
        "vae test --ckpt_path runs/vae/version_0/checkpoints/best.ckpt \\\n"
        "    --metrics.log_likelihood.num_samples 5000",
    ),
    "predict": (
        "vae predict --ckpt_path runs/vae/version_0/checkpoints/best.ckpt --data.root photos",
    ),
}

_GROUPS: dict[str, dict[str, str]] = {
    "model and data": {
        "--config": "configuration, below the options: a YAML file, or the name of a bundled one",
        "--model": "class of the model; --model.NAME VALUE sets an argument of it",
        "--data": "class of the data; --data.NAME VALUE sets an argument of it",
    },
    "training": {
        "--trainer.max_epochs": "number of epochs",
        "--trainer.max_steps": "number of steps; -1 for no limit",
        "--trainer.max_time": "longest duration, such as 00:08:00:00 for 8 hours",
        "--optimizer": "class of the optimizer (Adam); --optimizer.lr 3e-4 sets an argument",
        "--lr_scheduler": "class of the learning-rate scheduler, stepped once per epoch",
        "--critic_optimizer": "optimizer of the critic of FactorVAE and its kin",
        "--trainer.gradient_clip_val": "largest norm of the gradient",
        "--trainer.accumulate_grad_batches": "batches per step of the optimizer",
        "--seed_everything": "seed of all random numbers",
        "--training.compile": "true: compile the networks with torch.compile",
        "--training.skip_non_finite": "true: skip updates that are not finite, and count them",
    },
    "hardware": {
        "--trainer.accelerator": "cpu, gpu, mps, ...",
        "--trainer.devices": "number of devices, or their indices",
        "--trainer.num_nodes": "number of machines",
        "--trainer.precision": "bf16-mixed, 16-mixed, 32, ...",
        "--trainer.strategy": "ddp, fsdp, ...",
    },
    "run": {
        "--ckpt_path": "checkpoint to use, such as runs/NAME/version_0/checkpoints/best.ckpt; with "
        "vae fit: to continue its run",
        "--init_from": "checkpoint whose weights a new run starts from, also on other data",
        "--name": "name of the run",
        "--output_dir": "the run's folder is OUTPUT_DIR/NAME/version_N",
        "--trainer.logger+": "experiment tracker: WandbLogger or TensorBoardLogger",
        "--trainer.callbacks+": "callback, such as EarlyStopping",
        "--trainer.fast_dev_run": "true: try everything with one batch, and write nothing",
        "--evaluation_seed": "seed of the noise of measuring",
    },
    "checkpoints": {
        "--checkpoint.monitor": "metric by which the best checkpoint is chosen",
        "--checkpoint.save_top_k": "number of best checkpoints that are kept",
        "--last.every_n_epochs": "epochs from one last.ckpt to the next",
        "--last.every_n_minutes": "minutes from one to the next, also inside an epoch",
    },
}

_FOR_TRAINING = ("training", "checkpoints")
_LISTED = {"--config": "bundled", "--model": "models", "--data": "data"}


def wanted(args: list[str]) -> bool:
    """Return whether arguments after a command ask for the short help."""
    for i, argument in enumerate(args):
        if argument in ("-h", "--help"):
            return args[i + 1 : i + 2] != ["all"]
    return False


def text(command: str) -> str:
    """Return the short help of ``fit``, ``validate``, ``test`` or ``predict``."""
    options = option_list.read()["options"][command]
    blocks = [f"usage: vae {command} [options]\n\n{_HEADS[command]}"]
    blocks.append("\n".join(["examples:", *(f"  {line}" for line in _EXAMPLES[command])]))
    for group, texts in _GROUPS.items():
        if group in _FOR_TRAINING and command != "fit":
            continue
        rows = [_row(flag, what, options) for flag, what in texts.items() if _has(flag, options)]
        blocks.append("\n".join([f"{group}:", *rows]))
    parts = {"fit": "figures", "validate": "metrics", "test": "metrics"}
    if command in parts:
        group = parts[command]
        rows = [
            _row(flag, entry["help"].removesuffix("."), options)
            for flag, entry in options.items()
            if flag.startswith(f"--{group}.")
        ]
        blocks.append("\n".join([f"{group} (null switches one off):", *rows]))
    blocks.append(
        "\n".join(
            [
                "more:",
                _row("--print_config", "print all settings as YAML, and exit", options),
                _line("--model.help", "list the models; also --data.help, --model.prior.help, ..."),
                _line("--model.help CLASS", "list the arguments of a model"),
                _line("--help all", "list every option"),
            ]
        )
    )
    return "\n\n".join(blocks)


def _has(flag: str, options: dict[str, dict[str, object]]) -> bool:
    return flag.removesuffix("+") in options


def _row(flag: str, what: str, options: dict[str, dict[str, object]]) -> str:
    """Return the lines of an option, with its default and the names that it takes."""
    default = options.get(flag.removesuffix("+"), {}).get("default")
    shown = f"{what} ({default})" if default not in (None, "", -1) else what
    lines = [_line(flag, shown)]
    if flag in _LISTED:
        names = ", ".join(_names(flag))
        indent = " " * _COLUMN
        listed = textwrap.wrap(f"{_LISTED[flag]}: {names}", _WIDTH - _COLUMN)
        lines += [f"{indent}{line}" for line in listed]
    return "\n".join(lines)


def _names(flag: str) -> list[str]:
    if flag == "--config":
        return sorted(path.stem for path in config_folder().glob("*.yaml"))
    names: list[str] = option_list.read()["classes"][flag]
    return names


def _line(flag: str, what: str) -> str:
    first = f"  {flag}"
    wrapped = textwrap.wrap(what, _WIDTH - _COLUMN)
    if len(first) > _COLUMN - 2:
        return "\n".join([first, *(" " * _COLUMN + line for line in wrapped)])
    rest = [" " * _COLUMN + line for line in wrapped[1:]]
    return "\n".join([f"{first:<{_COLUMN}}{wrapped[0]}", *rest])
