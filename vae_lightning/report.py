"""What ``vae test`` found, for people and for programs."""

import itertools
import json
import math
import platform
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vae_lightning import __version__
from vae_lightning.errors import UserError
from vae_lightning.functional import bits_per_dimension
from vae_lightning.metrics import Result
from vae_lightning.models import BaseVAE

_CROSS_ENTROPY = {
    "reconstruction": "cross-entropy",
    "negative_elbo": "cross-entropy + kl",
    "negative_bound": "cross-entropy bound",
    "importance_weighted_cross_entropy": "importance-weighted",
}
"""What the terms of a bound are called where the likelihood is none."""

_NOTE = """\
Note:        pixels between 0 and 1 under a Bernoulli: a cross-entropy, not a log-likelihood.
             Compare it only with runs of the same kind; --data.pixels dynamic makes it one."""


def results_of(model: BaseVAE) -> dict[str, Result]:
    """What the last validation or test of a model reported, by name."""
    return {name.partition("/")[2]: result for name, result in model.results.items()}


def lines(model: BaseVAE) -> list[str]:
    """A line for each result, and a note where the likelihood is none."""
    shown = [_line(name, result, model) for name, result in results_of(model).items()]
    return shown if model.is_normalised or not shown else [*shown, _NOTE]


def _line(name: str, result: Result, model: BaseVAE) -> str:
    label = name if model.is_normalised else _CROSS_ENTROPY.get(name, name)
    value = result.value
    if isinstance(value, dict):  # of each factor by each dimension: the best one
        best = {factor: max(range(len(row)), key=row.__getitem__) for factor, row in value.items()}
        text = ", ".join(f"{factor} by z{i} {value[factor][i]:.2f}" for factor, i in best.items())
    elif isinstance(value, list) and value and isinstance(value[0], float):
        largest = sorted(enumerate(value), key=lambda item: -item[1])[:5]
        text = ", ".join(f"z{i} {x:.2f}" for i, x in largest) + f", ... {result.unit}"
    elif isinstance(value, list):
        text = ", ".join(value) or "none"
    else:
        digits = 4 if abs(value) >= 0.1 else 6
        number = f"{value:10d}     " if isinstance(value, int) else f"{value:15.{digits}f}"
        error = "" if result.error is None else f" \N{PLUS-MINUS SIGN} {result.error:.{digits}f}"
        line = f"  {label:<24}{number}{error:<11} {result.unit}"
        if result.normalised:
            line += f", {bits_per_dimension(value, model.image_shape):.4f} bits per dimension"
        return line
    return textwrap.fill(f"  {label:<24} {text}", 100, subsequent_indent=" " * 27)


def document(model: BaseVAE, data: object, **how: str) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Args:
        model: What was measured.
        data: The data module.
        how: Whatever else has to be known to do it again: the command, the checkpoint, the split.
    """
    results = results_of(model)
    shape = model.image_shape
    return {
        **how,
        "model": type(model).__name__,
        "likelihood": type(model.likelihood).__name__,
        "is_normalised": model.is_normalised,
        "data": type(data).__name__,
        "pixels": getattr(data, "pixels", None),
        "images": results["loss"].images,
        "evaluation_seed": model.evaluation_seed,
        "importance_samples": getattr(results.get("importance_samples"), "value", None),
        "versions": {
            "vae_lightning": __version__,
            "torch": torch.__version__,
            "lightning": version("lightning"),
            "python": platform.python_version(),
        },
        "metrics": {name: result.value for name, result in results.items()},
        "standard_errors": {n: r.error for n, r in results.items() if r.error is not None},
        "bits_per_dimension": {
            n: bits_per_dimension(r.value, shape) for n, r in results.items() if r.normalised
        },
        "units": {name: result.unit for name, result in results.items()},
    }


def write(content: dict[str, Any], folder: Path) -> Path:
    """Write ``metrics.json``; one that is there already becomes ``metrics_N.json``.

    Raises:
        UserError: If the folder cannot be written to.
    """
    path, text = folder / "metrics.json", to_json(content)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            taken = {old.stem for old in folder.glob("metrics_*.json")}
            n = next(n for n in itertools.count(1) if f"metrics_{n}" not in taken)
            path.rename(folder / f"metrics_{n}.json")
        path.write_text(text)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error}): the numbers are those printed above"
        ) from error
    return path


def to_json(content: dict[str, Any]) -> str:
    """JSON with an entry on a line, and null for the NaN and infinities of diverged models."""
    content = _without_nan(content)
    entries = []
    for name, value in content.items():
        text = json.dumps(value)
        if isinstance(value, dict) and value:
            inner = (f"    {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            text = "{\n" + ",\n".join(inner) + "\n  }"
        entries.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
