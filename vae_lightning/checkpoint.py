"""Checkpoints: plain data in, plain data out, never pickled code. No Lightning is needed."""

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vae_lightning.data_record import DataRecord
from vae_lightning.errors import UserError
from vae_lightning.files import check_checkpoint_exists

RECORD_KEY = "vae_lightning"
"""Key of `TrainingRecord` in a checkpoint."""

VERSION = 1
"""Version of the layout of `TrainingRecord`."""

MODEL_PREFIX = "model."
"""Prefix of the model's weights in the ``state_dict`` of the LightningModule."""

_GET_ANOTHER = "use another one from the same folder, or get the file again"


@dataclass
class TrainingRecord:
    """Everything that this project keeps in a checkpoint beside what Lightning does.

    Attributes:
        model: Class and settings of the model, see `Configurable.describe`.
        data: Class and settings of the data module; None if it is not from this project.
        optimizer: Class and settings of the optimizer.
        lr_scheduler: The same of the learning-rate scheduler, if there is one.
        critic_optimizer: The same of the critic's optimizer, if there is one.
        noise_seed: Seed of the noise in training.
        step: Number of batches trained on.
        epochs: Number of complete epochs.
        inside_epoch: Whether some batches of the current epoch are still to come.
        steps_per_call: Optimizer steps per call of ``training_step``.
        skipped: Number of updates skipped because they were not finite.
        log_rows: Number of rows of ``metrics.csv``.
        random_states: States of torch's generators, by process.
        code_counts: How often each code was used since the epoch began, by codebook.
        ended_early: The ``reason`` why a callback has ended the training, and the ``limits`` before
            which it did, ``max_epochs`` and ``max_steps``.
        run: The ``id`` and the ``folder`` of the run, None if it was trained from Python.
        class_names: Names of the classes of the data, empty if it has none.
        data_record: What `DataRecord.to_dict` returned for the data; None if nothing is known.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    noise_seed: int
    step: int
    data: dict[str, Any] | None = None
    lr_scheduler: dict[str, Any] | None = None
    critic_optimizer: dict[str, Any] | None = None
    epochs: int = 0
    inside_epoch: bool = False
    steps_per_call: int = 1
    skipped: int = 0
    log_rows: int = 0
    random_states: list[list[Tensor]] = field(default_factory=list)
    code_counts: dict[str, Tensor] = field(default_factory=dict)
    ended_early: dict[str, Any] | None = None
    run: dict[str, str] | None = None
    class_names: list[str] = field(default_factory=list)
    data_record: dict[str, Any] | None = None

    @property
    def known_data(self) -> DataRecord | None:
        """What is known of the data."""
        return None if self.data_record is None else DataRecord.from_dict(self.data_record)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data with its version."""
        return {"version": VERSION, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def from_checkpoint(
        cls, content: Mapping[str, Any], path: str | Path = "the checkpoint"
    ) -> Self:
        """Read the record of a checkpoint.

        Args:
            content: Content of the checkpoint.
            path: Its path, for messages.

        Raises:
            UserError: If there is no record, it is of another version, or it is damaged.
        """
        held = content.get(RECORD_KEY)
        if held is None:
            raise UserError(
                f"{path} is not a checkpoint of this version of the project (it has no "
                f"'{RECORD_KEY}'): train again, or use the version that wrote it"
            )
        if not isinstance(held, dict) or held.get("version") != VERSION:
            found = held.get("version") if isinstance(held, dict) else type(held).__name__
            raise UserError(
                f"{path} has a record of version {found!r}, and this version of the project reads "
                f"{VERSION}: train again, or use the version that wrote it"
            )
        entries = {name: value for name, value in held.items() if name != "version"}
        for entry in fields(cls):
            if not _is_valid(entry.name, entries.get(entry.name)):
                raise UserError(
                    f"{path} is damaged: its '{RECORD_KEY}.{entry.name}' is "
                    f"{_shown(entries.get(entry.name))}; {_GET_ANOTHER}"
                )
        return cls(**{f.name: entries[f.name] for f in fields(cls) if f.name in entries})


def _is_valid(name: str, value: Any) -> bool:
    """Return whether an entry of a record has the right type."""
    if name in ("data", "lr_scheduler", "critic_optimizer") and value is None:
        return True
    if name in ("model", "data", "optimizer", "lr_scheduler", "critic_optimizer"):
        if not isinstance(value, dict) or not value.keys() <= {"class_path", "init_args"}:
            return False
        has_arguments = isinstance(value.get("init_args", {}), dict)
        return has_arguments and isinstance(value.get("class_path"), str)
    if name == "inside_epoch":
        return isinstance(value, bool)
    if name == "random_states":
        return isinstance(value, list) and all(
            isinstance(states, list) and all(isinstance(s, Tensor) for s in states)
            for states in value
        )
    if name == "code_counts":
        return isinstance(value, dict) and all(isinstance(c, Tensor) for c in value.values())
    if name == "class_names":
        return value is None or (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        )
    if name == "data_record":
        return value is None or _is_data_record(value)
    if name == "ended_early":
        return value is None or (isinstance(value, dict) and value.keys() == {"reason", "limits"})
    if name == "run":
        is_named = isinstance(value, dict) and value.keys() == {"id", "folder"}
        return value is None or (is_named and all(isinstance(v, str) for v in value.values()))
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (value >= 0 or name == "noise_seed")
    )


def _is_data_record(value: Any) -> bool:
    try:
        DataRecord.from_dict(value)
    except (TypeError, ValueError):
        return False
    return True


def _shown(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and checked.

    Attributes:
        path: Path of the file.
        content: What Lightning wrote, with tensors on the CPU, mapped from the file.
        record: What this project wrote.
    """

    path: Path
    content: dict[str, Any]
    record: TrainingRecord

    @property
    def global_step(self) -> int:
        """Number of optimizer steps."""
        step: int = self.content["global_step"]
        return step

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights of the model, by the names of its own ``state_dict``."""
        return {
            name.removeprefix(MODEL_PREFIX): value
            for name, value in self.content["state_dict"].items()
        }


_FIELDS: dict[str, tuple[type, bool]] = {
    "state_dict": (Mapping, True),
    "pytorch-lightning_version": (str, True),
    "epoch": (int, True),
    "global_step": (int, True),
    "loops": (Mapping, False),
    "optimizer_states": (list, False),
    "lr_schedulers": (list, False),
    "callbacks": (Mapping, False),
}
"""Fields of a checkpoint that Lightning writes: their type, and whether they are required."""


CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
"""Files of a folder that ``vae export`` writes."""

WEIGHTS_DIGEST = "weights_sha256"
"""Key of the checksum of `WEIGHTS_FILE` in `CONFIG_FILE`."""


def is_exported(path: Path) -> bool:
    """Return whether a path is that of a folder that ``vae export`` has written.

    Raises:
        UserError: If one of its files is missing.
    """
    held = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (path / name).is_file()]
    if len(held) == 1:
        (missing,) = {CONFIG_FILE, WEIGHTS_FILE} - set(held)
        raise UserError(f"{path} has {held[0]} but no {missing}: export the model again")
    return len(held) == 2


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint, with its tensors mapped from the file onto the CPU, or an exported model.

    Args:
        path: A ``.ckpt`` file, or a folder that ``vae export`` has written.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint of a model of this project,
            or it is damaged, or it holds pickled code.
    """
    path = Path(path)
    if is_exported(path):
        return _read_exported(path)
    check_checkpoint_exists(path)
    if path.is_dir():
        inside = path / "checkpoints" / "best.ckpt"
        instead = inside if inside.is_file() else "the path of a .ckpt file"
        raise UserError(f"{path} is a folder: give {instead}")
    try:
        with path.open("rb") as file:
            is_whole = zipfile.is_zipfile(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): get read access") from error
    if not is_whole:
        raise UserError(f"{path} is not a checkpoint, or only a part of one: {_GET_ANOTHER}")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not compare the checksums, and would go on with other weights.
            altered = archive.testzip()
    except Exception as error:  # any error that bytes which nobody wrote so may lead to
        raise UserError(f"{path} is damaged ({_reason(error)}): {_GET_ANOTHER}") from error
    if altered is not None:
        raise UserError(f"{path} is damaged: {altered} in it has been altered; {_GET_ANOTHER}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not loaded: it holds Python objects other than weights and plain data, "
            "which could run code; train again, without what added them"
        ) from error
    except Exception as error:
        raise UserError(
            f"{path} is not a checkpoint that can be read ({_reason(error)}): {_GET_ANOTHER}"
        ) from error
    _check_fields(path, content)
    return Checkpoint(path, content, TrainingRecord.from_checkpoint(content, path))


def _read_exported(folder: Path) -> Checkpoint:
    """Read a folder that ``vae export`` has written."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}): {_GET_ANOTHER}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it holds no settings; {_GET_ANOTHER}")
    record = TrainingRecord.from_checkpoint(config, path)
    path = folder / WEIGHTS_FILE
    try:
        held = path.read_bytes()
        digest = config.get(WEIGHTS_DIGEST)
        if digest is not None and hashlib.sha256(held).hexdigest() != digest:
            raise UserError(
                f"{path} is not the file that {CONFIG_FILE} describes (its checksum is another "
                "one): export the model again, or get both files again"
            )
        weights = load(held)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}): {_GET_ANOTHER}") from error
    state_dict = {f"{MODEL_PREFIX}{name}": value for name, value in weights.items()}
    content = {"state_dict": state_dict, "global_step": record.step}
    return Checkpoint(folder, content, record)


def _check_fields(path: Path, content: Any) -> None:
    """Check that a file holds what Lightning writes."""
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is not a checkpoint of this project: it has no 'state_dict'")
    for name, (kind, needed) in _FIELDS.items():
        if needed and name not in content:
            raise UserError(f"{path} is not a checkpoint of this project: it has no '{name}'")
        if name in content and not isinstance(content[name], kind):
            found = type(content[name]).__name__
            raise UserError(f"{path} is damaged: its '{name}' is of type {found}; {_GET_ANOTHER}")
    version = content["pytorch-lightning_version"]
    if not re.match(r"\d+\.\d+", version):
        raise UserError(f"{path} is damaged: it is of version {version!r} of Lightning")
    for name, value in content["state_dict"].items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path} is damaged: the weight '{name}' is no tensor; {_GET_ANOTHER}")


def check_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Check that the weights of a checkpoint fit a model.

    Raises:
        UserError: If they do not.
    """
    held = {name: tuple(value.shape) for name, value in checkpoint.weights.items()}
    asked = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong = sorted(name for name in held.keys() | asked.keys() if held.get(name) != asked.get(name))
    if wrong:
        if wrong[0] not in held:
            what = "is missing"
        else:
            what = "has another size" if wrong[0] in asked else "is not part of the model"
        raise UserError(
            f"the weights of {checkpoint.path} do not fit the model that the options describe "
            f"({wrong[0]} {what}): leave out options that change its size or the images' shape"
        )


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")
