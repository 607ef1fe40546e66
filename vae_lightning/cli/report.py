"""Results of ``vae test`` and ``vae validate``, for people and for programs."""

import itertools
import json
import math
import platform
import re
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vae_lightning import __version__
from vae_lightning.errors import UserError
from vae_lightning.functional import bits_per_dimension
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.results import Result
from vae_lightning.training.module import LitVAE

_NOTE = """\
Note:        {what}, not a log-likelihood.
             Compare it only with runs of the same kind, or use {other}."""


def results_of(module: LitVAE) -> dict[str, Result]:
    """Return what the last validation or test reported, by name."""
    return {name.partition("/")[2]: result for name, result in module.results.items()}


def lines(module: LitVAE) -> list[str]:
    """Return a line for each result, and a note if the likelihood is not normalized."""
    shown = [_line(name, result, module) for name, result in results_of(module).items()]
    if not shown or not isinstance(module.model, GenerativeModel):
        return shown
    if not module.is_normalized:
        return [*shown, _note(module)]
    record = module.model.record
    if record is None or record.is_8_bit or module.model.likelihood.num_values:
        return shown
    more = record.log_scale()
    note = "Note:        nats of scaled values; in the units of the data, -log p(x) is"
    return [*shown, f"{note} {more:.4f} more."]


def _note(module: LitVAE) -> str:
    """Return what to do for a likelihood: gray digits are made binary, and photographs are not."""
    model, record = module.model, module.model.record
    assert isinstance(model, GenerativeModel)
    kind = type(model.likelihood).__name__
    what = f"pixels between 0 and 1 under a {kind}: a {model.likelihood.loss_name}"
    other = "--data.binarization dynamic"
    if not model.likelihood.normalized:
        what = f"{kind} is a loss without a density"
    if record is not None and not record.is_8_bit:
        other = "--model.likelihood Gaussian"
    elif model.image_shape[0] > 1 or not model.likelihood.normalized:
        other = "--model.likelihood DiscretizedLogistic"
    if record is not None and record.binary:
        other = "--model.likelihood Bernoulli"
    return _NOTE.format(what=what, other=other)


def _line(name: str, result: Result, module: LitVAE) -> str:
    label = _label(name, module)
    value = result.value
    if isinstance(value, dict):  # by factor and dimension: show the best dimension
        best = {factor: max(range(len(row)), key=row.__getitem__) for factor, row in value.items()}
        text = ", ".join(f"{factor} by z{i} {value[factor][i]:.2f}" for factor, i in best.items())
    elif isinstance(value, list) and value and isinstance(value[0], float):
        largest = sorted(enumerate(value), key=lambda item: -item[1])[:5]
        more = ", ..." if len(value) > len(largest) else ""
        text = ", ".join(f"z{i} {x:.2f}" for i, x in largest) + f"{more} {result.unit}"
    elif isinstance(value, list):
        text = ", ".join(value) or "none"
    else:
        digits = 4 if abs(value) >= 0.1 else 6
        number = f"{value:10d}     " if isinstance(value, int) else f"{value:15.{digits}f}"
        error = "" if result.error is None else f" \N{PLUS-MINUS SIGN} {result.error:.{digits}f}"
        line = f"  {label:<24}{number}{error:<11} {result.unit}"
        if result.normalized:
            bits = bits_per_dimension(value, module.model.image_shape)
            line += f", {bits:.4f} bits per dimension"
        return line
    return textwrap.fill(f"  {label:<24} {text}", 100, subsequent_indent=" " * 27)


def _label(name: str, module: LitVAE) -> str:
    """Return what a result is called: by its name, or that of a loss that is no log-likelihood."""
    model = module.model
    if module.is_normalized or not isinstance(model, GenerativeModel):
        return name
    loss = model.likelihood.loss_name
    if name == "negative_elbo":
        return f"{loss} + {'code_nll' if model.has(Capability.CODE_PRIOR) else 'kl'}"
    if bound := re.fullmatch(r"negative_(?:iwae_)?(.*)bound", name):
        return " ".join([loss, *bound[1].split("_")[:-1], "bound"])
    if name.startswith("importance_weighted_"):
        return "importance-weighted"
    return loss if name == "reconstruction" else name


def document(module: LitVAE, data: object, **how: str) -> dict[str, Any]:
    """Return the content of ``metrics.json``.

    Args:
        module: What was measured.
        data: The data module.
        **how: What is needed to repeat the measurement: the command, the checkpoint, the split.
    """
    results = results_of(module)
    model = module.model
    return {
        **how,
        "model": type(model).__name__,
        "likelihood": type(model.likelihood).__name__
        if isinstance(model, GenerativeModel)
        else None,
        "is_normalized": module.is_normalized,
        "data": type(data).__name__,
        "binarization": getattr(data, "binarization", None),
        "images": results["loss"].images,
        "evaluation_seed": module.evaluation_seed,
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
            name: bits_per_dimension(result.value, model.image_shape)
            for name, result in results.items()
            if result.normalized
        },
        "units": {name: result.unit for name, result in results.items()},
    }


def write(content: dict[str, Any], folder: Path) -> Path:
    """Write ``metrics.json``; an existing one is renamed to ``metrics_N.json``.

    Raises:
        UserError: If the folder cannot be written to.
    """
    path = folder / "metrics.json"
    text = json.dumps(_without_nan(content), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            taken = {old.stem for old in folder.glob("metrics_*.json")}
            n = next(n for n in itertools.count(1) if f"metrics_{n}" not in taken)
            path.rename(folder / f"metrics_{n}.json")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error}): the numbers are those printed above"
        ) from error
    return path


def _without_nan(value: Any) -> Any:
    """Replace the NaN and infinities of diverged models, which JSON lacks, by null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
