"""Sweep files of W&B: reading them, and drawing the values of their parameters."""

import itertools
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_lightning.cli.yaml_files import parse_value, read_utf8
from vae_lightning.errors import UserError


@dataclass(frozen=True)
class Sweep:
    """Content of a sweep file.

    Attributes:
        name: Name of the sweep and of its folder.
        method: ``grid`` or ``random``.
        options: Options of every ``vae fit``.
        metric: Column of ``metrics.csv`` that is compared.
        maximize: Whether larger values are better.
        parameters: ``value``, ``values`` or a distribution, by the name of the option.
    """

    name: str
    method: str
    options: list[str]
    metric: str
    maximize: bool
    parameters: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """Read a file.

        Raises:
            UserError: If it is not a sweep of ``vae fit``.
        """
        content = parse_value(read_utf8(path), str(path))
        missing = [
            key
            for key in ("method", "command", "metric", "parameters")
            if not (isinstance(content, dict) and content.get(key))
        ]
        if missing:
            raise UserError(f"{path} is not a sweep: it has no '{missing[0]}'")
        method = content["method"]
        if method == "bayes":
            raise UserError(
                f"{path}: method bayes chooses by earlier results, which W&B's server does: use "
                "`wandb sweep`, or the method random"
            )
        if method not in ("grid", "random"):
            raise UserError(f"{path}: method is {method!r}; use grid or random")
        for name, parameter in content["parameters"].items():
            if not isinstance(parameter, dict) or "parameters" in parameter:
                raise UserError(f"{path}: {name} must have a value, values or a distribution")
        return cls(
            content.get("name") or path.stem,
            method,
            _options_of(content["command"], path),
            content["metric"]["name"],
            content["metric"].get("goal") == "maximize",
            content["parameters"],
        )

    def combinations(self, trials: int | None, seed: int) -> list[dict[str, Any]]:
        """Return the values of all parameters, once for each ``vae fit``.

        Args:
            trials: Number of combinations to draw, for the methods that draw them.
            seed: Seed of these draws; a larger number of trials begins with the same ones.

        Raises:
            UserError: If ``trials`` is missing or not applicable, or a distribution is unknown.
        """
        if self.method == "grid":
            if trials is not None:
                raise UserError("--trials is for sweeps that draw values; this one is a grid")
            values = [_choices(name, parameter) for name, parameter in self.parameters.items()]
            return [
                dict(zip(self.parameters, row, strict=True)) for row in itertools.product(*values)
            ]
        if trials is None or trials < 1:
            raise UserError(
                "this sweep draws values at random: give --trials N, the number of "
                "combinations to draw"
            )
        drawn = []
        for trial in range(trials):
            generator = random.Random(f"{seed} {trial}")
            drawn.append({n: _draw(n, p, generator) for n, p in self.parameters.items()})
        return drawn


def _options_of(command: object, path: Path) -> list[str]:
    """Return the options of ``vae fit`` in a command, without its logger and ``${args}``."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    if "fit" not in words or "${args}" not in words:
        raise UserError(
            f"{path}: its command must be a list with vae, fit and ${{args}}, which become flags"
        )
    options = [word for word in words[words.index("fit") + 1 :] if word != "${args}"]
    return [word for word in options if not word.startswith("--trainer.logger")]


def _choices(name: str, parameter: Mapping[str, Any]) -> list[Any]:
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return list(parameter["values"])
    raise UserError(
        f"{name} has no list of values, so there is no grid: give 'values', or use the method "
        "random with --trials"
    )


def _draw(name: str, parameter: Mapping[str, Any], generator: random.Random) -> Any:
    """Draw one value, as W&B does."""
    if "value" in parameter or "values" in parameter:
        weights = parameter.get("probabilities")
        return generator.choices(_choices(name, parameter), weights)[0]
    low, high = parameter.get("min"), parameter.get("max")
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = parameter.get("distribution", "int_uniform" if whole else "uniform")
    draws: dict[str, Callable[[], Any]] = {
        "uniform": lambda: generator.uniform(low, high),  # type: ignore[arg-type]
        "int_uniform": lambda: generator.randint(low, high),  # type: ignore[arg-type]
        "log_uniform_values": lambda: math.exp(generator.uniform(math.log(low), math.log(high))),  # type: ignore[arg-type]
        "normal": lambda: generator.gauss(parameter.get("mu", 0.0), parameter.get("sigma", 1.0)),
    }
    if distribution not in draws:
        raise UserError(f"{name}: distribution {distribution!r} is none of {', '.join(draws)}")
    try:
        return draws[distribution]()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name}: {distribution} needs numbers as min and max, got {low} and {high}"
        ) from error


def label_combinations(
    names: Sequence[str], combinations: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return a name for each combination, by the values that vary; no two names are the same."""
    varied = [name for name in names if len({str(values[name]) for values in combinations}) > 1]
    short = short_names(varied)
    labels: list[str] = []
    count: dict[str, int] = {}
    for values in combinations:
        label = ",".join(f"{short[name]}={value_text(values[name])}" for name in varied) or "only"
        label = re.sub(r"[^\w.,=+-]+", "_", label)[:100]
        count[label] = count.get(label, 0) + 1
        labels.append(f"{label},{count[label]}" if count[label] > 1 else label)
    return labels


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Shorten names as long as they stay unique.

    Example:
        >>> short_names(["optimizer.lr", "model.beta"])
        {'optimizer.lr': 'lr', 'model.beta': 'beta'}
    """
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts))]
        unique = [end for end in ends if sum(f".{n}".endswith(f".{end}") for n in names) == 1]
        short[name] = unique[-1]
    return short


def comparable(value: Any) -> str:
    """Return a text that is the same for equal values, such as 1 and 1.0.

    Example:
        >>> comparable(1) == comparable(1.0), comparable(True) == comparable(1)
        (True, False)
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(comparable, value))}]"
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return repr(float(value) if is_number else value)


def value_text(value: Any) -> str:
    """Return a value as it is shown in tables and names."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
