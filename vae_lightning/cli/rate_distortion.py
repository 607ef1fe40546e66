"""The rate-distortion plane of several runs: what is drawn of them, and the table."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_lightning.cli.sweep_file import comparable, short_names, value_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vae_lightning.plotting import RatePoint

NAME = "rate_distortion"

_MOST_SERIES = 12
_MOST_POINTS = 12
"""Largest number of points without a curve that are named."""


@dataclass(frozen=True)
class Measured:
    """Rate and distortion of a run.

    Attributes:
        name: Name of the run.
        parameters: What tells it from the others, by name.
        rate: KL.
        distortion: -log p(x|z).
        more: Further columns of the table.
    """

    name: str
    parameters: dict[str, Any]
    rate: float
    distortion: float
    more: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return a row of the table."""
        numbers = {"rate": self.rate, "distortion": self.distortion}
        both = {"negative_elbo": self.rate + self.distortion}
        return {"model": self.name, **self.parameters, **numbers, **both, **self.more}


def of_log(run: Path, name: str, parameters: dict[str, Any]) -> Measured | None:
    """Return the last validation in the log of a run, None if it has no rate and distortion."""
    path = run / "metrics.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("val/negative_elbo")]
    if not rows or not rows[-1].get("val/reconstruction"):
        return None
    distortion = float(rows[-1]["val/reconstruction"])
    rate = float(rows[-1]["val/negative_elbo"]) - distortion
    if not math.isfinite(rate + distortion):
        return None
    return Measured(name, parameters, rate, distortion)


def is_seed(parameter: str) -> bool:
    """Return whether a parameter is a seed, over which results are averaged."""
    return "seed" in parameter.rpartition(".")[2]


def figure(
    measured: Sequence[Measured],
    along: str | None = None,
    unit: str = "nats per image",
    **text: str,
) -> "Figure":
    """Draw runs in the rate-distortion plane.

    Runs that differ in nothing but a seed are one point. A curve joins the points that differ in
    one parameter.

    Args:
        measured: The runs.
        along: That parameter; by default the first one that has several numbers as its values.
        unit: Unit of the distortion.
        **text: ``title`` and ``note`` of the figure.
    """
    from vae_lightning import plotting  # which imports torch

    varied = {
        name: None
        for run in measured
        for name in run.parameters
        if len({comparable(other.parameters.get(name)) for other in measured}) > 1
    }
    names = [name for name in varied if not is_seed(name)]
    if along is None:
        along = next((name for name in names if _is_number(measured, name)), None)
    short = short_names(names)
    others = [name for name in names if name != along]
    series = _series(measured, along, others, short)
    is_curve = along is not None and any(len(points) > 1 for points in series.values())
    if not is_curve or len(series) > _MOST_SERIES:
        series = {"": _single(measured, names)}
        is_curve = False
    normal = unit.startswith("nats")
    return plotting.rate_distortion(
        series,
        x_label="rate: KL in nats per image",
        y_label=f"distortion: {'-log p(x|z)' if normal else 'reconstruction'} in {unit}".replace(
            "-log", "\N{MINUS SIGN}log"
        ),
        sum_label="\N{MINUS SIGN}ELBO" if normal else "sum",
        connected=is_curve,
        **text,
    )


def _is_number(measured: Sequence[Measured], name: str) -> bool:
    """Return whether all values of a parameter are numbers."""
    values = [run.parameters.get(name) for run in measured]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _series(
    measured: Sequence[Measured], along: str | None, others: Sequence[str], short: dict[str, str]
) -> dict[str, list["RatePoint"]]:
    """Return the points of each curve, in the order of the parameter along it."""
    from vae_lightning.plotting import RatePoint

    if along is None:
        return {}
    curves: dict[str, dict[Any, list[Measured]]] = {}
    for run in measured:
        name = ", ".join(f"{short[o]} {value_text(run.parameters.get(o))}" for o in others)
        curves.setdefault(name, {}).setdefault(run.parameters.get(along), []).append(run)
    label = short.get(along, along.rpartition(".")[2])
    made = {}
    for name, by_value in curves.items():
        points = []
        for i, value in enumerate(sorted(by_value, key=lambda v: (v is None, v))):
            runs = by_value[value]
            text = value_text(value) if i else f"{label} {value_text(value)}"
            points.append(RatePoint(text, [r.rate for r in runs], [r.distortion for r in runs]))
        made[name] = points
    return made


def _single(measured: Sequence[Measured], names: Sequence[str]) -> list["RatePoint"]:
    """Return a point for each setting."""
    from vae_lightning.plotting import RatePoint

    groups: dict[str, list[Measured]] = {}
    for run in measured:
        setting = repr([run.parameters.get(n) for n in names]) if run.parameters else run.name
        groups.setdefault(setting, []).append(run)
    labeled = len(groups) <= _MOST_POINTS
    return [
        RatePoint(
            runs[0].name if labeled else "", [r.rate for r in runs], [r.distortion for r in runs]
        )
        for runs in groups.values()
    ]
