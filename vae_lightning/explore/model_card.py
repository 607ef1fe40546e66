"""Model cards: what a model is, how it was trained, what was measured, and what to know."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vae_lightning.checkpoint import TrainingRecord
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel

_HUB_DATA = {"MNIST": "mnist", "FashionMNIST": "fashion_mnist", "StaticMNIST": "mnist"}
"""Names of data sets on Hugging Face's hub, by data module."""

_SHOWN_SETTINGS = ("latent_dim", "beta", "encoder", "decoder", "likelihood", "prior", "posterior")


def model_card(
    model: GenerativeModel,
    record: TrainingRecord,
    report: Mapping[str, Any] | None = None,
    *,
    files: Sequence[str] = (),
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Return the README.md of an exported model, in the form of Hugging Face's hub.

    Args:
        model: The model.
        record: How it was trained.
        report: Content of the ``metrics.json`` of its test, if there is one.
        files: Names of the other files of the folder.
        pictures: Captions of pictures by their file names.
    """
    name, data = type(model).__name__, _data_name(record)
    tags = ["variational-autoencoder", "vae", name.lower()]
    if model.conditional:
        tags.append("class-conditional")
    header: dict[str, Any] = {
        "library_name": "vae_lightning",
        "tags": list(dict.fromkeys(tags)),
    }
    if model.has(Capability.SAMPLES) and not model.conditional:
        header["pipeline_tag"] = "unconditional-image-generation"
    if data in _HUB_DATA:
        header["datasets"] = [_HUB_DATA[data]]
    sections = [
        f"---\n# Add a license, such as license: mit\n{yaml.safe_dump(header)}---",
        f"# {name}{f' on {data}' if data else ''}",
        _summary(model),
        *(f"![{caption}]({file})" for file, caption in (pictures or {}).items()),
        "## Use",
        _use(model),
        "## Training",
        _table([("", ""), *_training(model, record)]),
        "## Numbers",
        _numbers(report),
        "## Good to know",
        "\n".join(f"- {text}" for text in _remarks(model, report)),
        "## Files",
        "\n".join(f"- `{file}`{_explained(file)}" for file in files),
        "Upload this folder with `hf upload USER/NAME .`, from inside it.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _data_name(record: TrainingRecord) -> str:
    return (record.data or {}).get("class_path", "").rpartition(".")[2]


def _summary(model: GenerativeModel) -> str:
    first = (inspect.getdoc(type(model)) or type(model).__name__).splitlines()[0]
    channels, height, width = model.image_shape
    parameters = sum(parameter.numel() for parameter in model.parameters())
    color = {1: "gray", 3: "RGB"}.get(channels, f"{channels}-channel")
    classes = f", given one of {model.num_classes} classes" if model.conditional else ""
    return f"{first}\n\n{parameters:,} parameters; {height}x{width} {color} images{classes}."


def _use(model: GenerativeModel) -> str:
    label = ", label=0" if model.conditional else ""
    own = _own_modules(model)
    lines = [
        *(f"import {name}  # has classes of the model" for name in own),
        "import vae_lightning",
        "",
        'model = vae_lightning.load("FOLDER")  # this folder',
    ]
    if model.has(Capability.SAMPLES):
        lines.append(f"images = model.sample(64{label})  # (64, C, H, W), in [0, 1]")
    lines += [
        f"z = model.embed(images{label})  # latents",
        f"again = model.decode(z{label})  # images",
    ]
    if not model.has(Capability.SAMPLES):
        lines.insert(3 + len(own), "images = ...  # (B, C, H, W), in [0, 1]")
    python = "```python\n" + "\n".join(lines) + "\n```"
    imports = "".join(f" --import {name}" for name in own)
    console = f"```console\n$ vae reconstruct photos --ckpt_path FOLDER{imports}\n```"
    return f"{python}\n\n{console}"


def _own_modules(model: GenerativeModel) -> list[str]:
    """Return the names of modules with classes of the model that are not of this project."""
    packages = ("vae_lightning", "torch", "zuko")
    names = {type(part).__module__ for part in model.modules()}
    return sorted(name for name in names if name.partition(".")[0] not in packages)


def _training(model: GenerativeModel, record: TrainingRecord) -> list[tuple[str, str]]:
    rows = []
    if record.data is not None:
        arguments = record.data.get("init_args", {})
        changed = ("binarization", "size", "color", "train_on_val")
        options = [
            f"{key} {arguments[key]}"
            for key in changed
            if arguments.get(key) not in (None, False, "none")
        ]
        rows.append(("data", ", ".join([_data_name(record), *options])))
    if record.class_names:
        names = record.class_names
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        rows.append(("classes", shown))
    rows.append(("length", f"{record.epochs} epochs, {record.step:,} batches"))
    for name in ("optimizer", "lr_scheduler"):
        description = getattr(record, name)
        if description is not None:
            rows.append((name.replace("_", " "), _plain(description)))
    settings = record.model.get("init_args", {})
    rows += [(key, _plain(settings[key])) for key in _SHOWN_SETTINGS if key in settings]
    rows.append(("seed", str(record.noise_seed)))
    return rows


def _plain(value: Any) -> str:
    """Return a setting in one line: a class with its arguments, or a value."""
    if isinstance(value, Mapping) and "class_path" in value:
        name = str(value["class_path"]).rpartition(".")[2]
        arguments = value.get("init_args") or {}
        used = {key: item for key, item in arguments.items() if item not in (None, False, 0)}
        inside = ", ".join(f"{key}={_plain(item)}" for key, item in used.items())
        return f"{name}({inside})" if inside else name
    return str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    first, *others = rows
    lines = [first, ["---"] * len(first), *others]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in lines
    )


def _numbers(report: Mapping[str, Any] | None) -> str:
    """Return a table of what a test has measured."""
    if report is None:
        return (
            "Not measured: `vae test --ckpt_path CKPT` measures the checkpoint, and `vae export` "
            "then writes the numbers here."
        )
    rows = [("metric", "value", "standard error", "unit")]
    errors, units = report.get("standard_errors", {}), report.get("units", {})
    for name, value in report.get("metrics", {}).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            error = errors.get(name)
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            rows.append((name, shown, "" if error is None else f"{error:.2g}", units.get(name, "")))
    images, split, data = (report.get(name, "") for name in ("images", "split", "data"))
    return f"{_table(rows)}\n\nOn {images} {split} images of {data}, by `vae test`."


def _remarks(model: GenerativeModel, report: Mapping[str, Any] | None) -> list[str]:
    """Return what a user of the model should know."""
    found = []
    metrics = (report or {}).get("metrics", {})
    if not model.has(Capability.SAMPLES):
        found.append("It has no prior to draw samples from.")
    elif not model.has(Capability.DENSITY):
        found.append("It has no density: the likelihood of images cannot be estimated.")
    if report is not None and not report.get("is_normalized", True):
        likelihood = model.likelihood
        kind = type(likelihood).__name__
        trained = f"with {kind}, a loss and not a likelihood"
        if likelihood.normalized:
            trained = f"on gray pixels with a {kind} likelihood"
        found.append(
            f"Trained {trained}: its bound is a {likelihood.loss_name}, not one of the "
            "log-likelihood, and is comparable only with models of the same kind."
        )
    if collapsed := metrics.get("collapsed"):
        found.append(
            f"{len(collapsed)} latent dimensions have collapsed and change nothing: "
            f"{', '.join(collapsed)}."
        )
    usage = metrics.get("code_usage")
    if isinstance(usage, float) and usage < 0.5:
        found.append(f"Only {usage:.0%} of the codes are used.")
    found.append(
        "It knows images like those that it was trained on, of the same size and with values in "
        "[0, 1], and reproduces what is frequent or missing among them."
    )
    return found


def _explained(file: str) -> str:
    texts = {
        "config.json": "settings, from which the model is built",
        "model.safetensors": "weights",
        "encoder.onnx": "images `x` (B, C, H, W) to latents, for ONNX runtimes",
        "decoder.onnx": "latents to images (B, C, H, W), for ONNX runtimes",
        "encoder.pt2": "the same for `torch.export.load`",
        "decoder.pt2": "the same for `torch.export.load`",
    }
    return f": {texts[file]}" if file in texts else ""
