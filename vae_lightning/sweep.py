"""``vae sweep``: the combinations of a W&B sweep file, run on this machine without an account.

The file is what ``wandb sweep`` takes, see https://docs.wandb.ai/models/sweeps/define-sweep-configuration,
and each combination becomes the ``vae fit`` that ``wandb agent`` would start, only without W&B.
"""

import argparse
import csv
import io
import itertools
import json
import math
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import yaml

from vae_lightning import slurm
from vae_lightning.errors import UserError, fail
from vae_lightning.files import replace
from vae_lightning.shipped import shipped_file
from vae_lightning.signals import REQUEUE

_RESULT = "result.json"
"""Written into the folder of a combination when it has been trained to the end."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        name: Name of the sweep, and of its folder.
        method: ``grid``, ``random`` or ``bayes``.
        options: Of every ``vae fit``.
        metric: Column of metrics.csv that is compared.
        maximize: Whether more of it is better.
        parameters: By the name of the option: ``value``, ``values`` or a distribution.
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
            UserError: If it is no sweep of ``vae fit``.
        """
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
        missing = [
            key
            for key in ("method", "command", "metric", "parameters")
            if not (isinstance(content, dict) and content.get(key))
        ]
        if missing:
            raise UserError(f"{path} is no sweep: it has no '{missing[0]}'")
        method = content["method"]
        if method not in ("grid", "random", "bayes"):
            raise UserError(f"{path}: method is {method!r}; use grid, random or bayes")
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
        """Values of all parameters, once for each ``vae fit``.

        Args:
            trials: How many to draw, for the methods that draw them.
            seed: Of these draws; more trials begin with the same ones.

        Raises:
            UserError: If ``trials`` is missing or not wanted, or a distribution is not known.
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
                f"the method of this sweep is {self.method}: give --trials N, the number of "
                "combinations to draw"
            )
        drawn = []
        for trial in range(trials):
            generator = random.Random(f"{seed} {trial}")
            drawn.append({n: _draw(n, p, generator) for n, p in self.parameters.items()})
        return drawn


def _options_of(command: object, path: Path) -> list[str]:
    """The options of ``vae fit`` in a command, without the flags of the sweep and its logger."""
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
    """One value, as W&B draws it."""
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


_RUNNING: set[subprocess.Popen[bytes]] = set()
"""The trainings that run now."""


@dataclass(frozen=True)
class Combination:
    """One ``vae fit`` of a sweep.

    Attributes:
        number: Its place, from 0.
        parameters: Values by the name of the option.
        folder: Of its runs, ``version_0`` and so on.
        options: All that ``vae fit`` gets.
    """

    number: int
    parameters: dict[str, Any]
    folder: Path
    options: list[str]

    def result(self) -> dict[str, Any] | None:
        """What is known of it, None if it was not trained to the end with these options."""
        known = self._known()
        return known if known.get("options") == self.options and "run" in known else None

    def _known(self) -> dict[str, Any]:
        path = self.folder / _RESULT
        return json.loads(path.read_text()) if path.is_file() else {}

    def _interrupted(self) -> Path | None:
        """The last checkpoint of a training with these options that has not come to its end."""
        known = self._known()
        if known.get("options") != self.options or "run" in known:
            return None
        checkpoints = self.folder.glob("version_*/checkpoints/last.ckpt")
        return max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)

    def train(self, metric: str) -> dict[str, Any]:
        """Train, or continue a training that was interrupted, and write `result` into the folder.

        Raises:
            UserError: If the training fails or has no such metric.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before, started = set(self.folder.glob("version_*")), time.monotonic()
        log, last = self.folder / "log.txt", self._interrupted()
        replace(self.folder / _RESULT, json.dumps({"options": self.options}) + "\n")
        with log.open("w") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vae_lightning", "fit", *self.options),
                    *([f"--ckpt_path={last}"] if last else []),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _RUNNING.add(process)
            code = process.wait()
            _RUNNING.discard(process)
        lines = log.read_text().splitlines()
        said = [line.partition("vae: error: ")[2] for line in lines if "vae: error: " in line]
        # It may have been interrupted after its end, but before this function's.
        complete = last and said and "already: give a --trainer.max_" in said[-1]
        if code and not complete:
            raise UserError(f"{said[-1] if said else f'exit code {code}'}, see {log}")
        made = sorted(set(self.folder.glob("version_*")) - before)
        if not made and not last:
            raise UserError(f"it left no run folder, see {log}")
        run = made[-1] if made else last.parents[1]  # type: ignore[union-attr]
        value = _last_value(run / "metrics.csv", metric)
        result = {
            "options": self.options,
            "parameters": self.parameters,
            metric: value if math.isfinite(value) else None,  # JSON knows no NaN
            "run": str(run),
            "seconds": round(time.monotonic() - started),
        }
        replace(self.folder / _RESULT, json.dumps(result, indent=2) + "\n")
        return result


def _last_value(path: Path, metric: str) -> float:
    """The last value of a metric, as W&B's summary has it."""
    if not path.is_file():
        raise UserError(f"{path} is missing: leave out options that switch logging off")
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    values = [row[metric] for row in rows if row.get(metric)]
    if not values:
        known = sorted({name for row in rows for name in row if name.startswith("val/")})
        raise UserError(f"{path} has no {metric}, only {', '.join(known)}")
    return float(values[-1])


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """``model.optimizer.lr`` -> ``lr``, as long as that is unique."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts))]
        unique = [end for end in ends if sum(f".{n}".endswith(f".{end}") for n in names) == 1]
        short[name] = unique[-1]
    return short


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plan(
    sweep: Sweep, combinations: Sequence[dict[str, Any]], parent: Path, extra: Sequence[str]
) -> list[Combination]:
    """Give each combination its folder, which says what it is, and its options."""
    varied = [name for name in sweep.parameters if len({str(c[name]) for c in combinations}) > 1]
    short = _short_names(varied)
    planned = []
    taken: dict[str, int] = {}
    for number, values in enumerate(combinations):
        label = ",".join(f"{short[name]}={_text(values[name])}" for name in varied) or "only"
        label = re.sub(r"[^\w.,=+-]+", "_", label)[:100]
        taken[label] = taken.get(label, 0) + 1
        if taken[label] > 1:
            label += f",{taken[label]}"
        where = [f"--output_dir={parent}", f"--name={label}"]
        flags = [f"--{name}={'null' if v is None else v}" for name, v in values.items()]
        options = [*sweep.options, *extra, *where, *flags]
        planned.append(Combination(number, values, parent / label, options))
    return planned


def run(args: Sequence[str]) -> None:
    """Run ``vae sweep`` with its arguments.

    Raises:
        SystemExit: With code 2 for wrong options, 1 if a training failed, 130 after Ctrl-C.
    """
    parser = _parser()
    options, extra = parser.parse_known_args(args)
    try:
        _run(options, extra)
    except UserError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on with what is not finished", 130)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see vae sweep --help", 2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vae sweep",
        usage="vae sweep FILE [options] [options of vae fit]",
        description="Train once for each combination of options in a W&B sweep file, without W&B. "
        "What is finished is left out when the command is given again. early_terminate is not "
        "done.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a file, or the name of a sweep shipped")
    parser.add_argument("--name", help="name of the sweep; by default that in the file")
    parser.add_argument(
        "--output_dir", default="runs", help="runs go to OUTPUT_DIR/NAME/COMBINATION/version_N"
    )
    parser.add_argument("--list", action="store_true", help="list the combinations, train nothing")
    parser.add_argument(
        "--only",
        type=int,
        metavar="I",
        help="train combination number I only, as in a SLURM array: --only $SLURM_ARRAY_TASK_ID",
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--trials", type=int, help="combinations to draw, unless it is a grid")
    parser.add_argument("--seed", type=int, default=0, help="of these draws")
    return parser


def _run(options: argparse.Namespace, extra: Sequence[str]) -> None:
    sweep = Sweep.read(shipped_file(options.file, "sweep", "sweep"))
    parent = Path(options.output_dir) / (options.name or sweep.name)
    combinations = plan(sweep, sweep.combinations(options.trials, options.seed), parent, extra)
    last = len(combinations) - 1
    if options.list:
        for combination in combinations:
            done = ", done" if combination.result() else ""
            print(f"{combination.number:4d}  {combination.folder.name}{done}")
        print(f"{len(combinations)} combinations: --only 0 to --only {last}")
        return
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}")
    chosen = combinations
    if options.only is not None:
        if not 0 <= options.only <= last:
            raise UserError(f"--only {options.only}: there are combinations 0 to {last}")
        chosen = [combinations[options.only]]
    todo = [combination for combination in chosen if not combination.result()]
    print(
        f"{sweep.name}: {len(combinations)} combinations, {len(todo)} to train, "
        f"{len(chosen) - len(todo)} done"
    )
    failed = _train(todo, sweep.metric, options.jobs)
    _compare(combinations, sweep, parent)
    if failed:
        again = "; the same command tries them again"
        raise UserError(f"{failed} of {len(chosen)} combinations failed{again}")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Hand SIGTERM on to the trainings, which save; then end as after Ctrl-C."""
    for process in _RUNNING:
        process.terminate()
    raise KeyboardInterrupt


def _train(todo: Sequence[Combination], metric: str, jobs: int) -> int:
    """Train, a line for each; returns how many failed."""
    before = signal.signal(signal.SIGTERM, _stop)
    if slurm.job() and REQUEUE:
        signal.signal(REQUEUE, signal.SIG_IGN)  # for the trainings to obey
    try:
        return _train_all(todo, metric, jobs)
    finally:
        signal.signal(signal.SIGTERM, before)


def _train_all(todo: Sequence[Combination], metric: str, jobs: int) -> int:
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(combination.train, metric): combination for combination in todo}
        try:
            for count, future in enumerate(as_completed(begun), 1):
                label = f"[{count}/{len(todo)}] {begun[future].folder.name}"
                try:
                    result = future.result()
                    took = timedelta(seconds=result["seconds"])
                    print(f"{label}: {metric} {_number(result[metric])} in {took}", flush=True)
                except UserError as error:
                    failed += 1
                    print(f"{label}: failed: {error}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # those that run were interrupted too
            raise
    return failed


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"


def _compare(combinations: Sequence[Combination], sweep: Sweep, parent: Path) -> None:
    """Print and write a table of what is finished, the best first."""
    rows = _rows(combinations, sweep)
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace(parent / "sweep.csv", text.getvalue())
    names = _short_names(list(sweep.parameters))
    table = [[*names.values(), sweep.metric]]
    table += [[*(_text(row[name]) for name in names), _number(row[sweep.metric])] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(f"\nTable:       {parent / 'sweep.csv'}")
    print(f"Best:        vae test --ckpt_path {rows[0]['run']}/checkpoints/best.ckpt")


def _rows(combinations: Sequence[Combination], sweep: Sweep) -> list[dict[str, Any]]:
    """Parameters, metric and folder of what is finished; the best first, diverged ones last."""

    def badness(result: dict[str, Any]) -> float:
        value = result[sweep.metric]
        return math.inf if value is None else -value if sweep.maximize else value

    results = sorted((r for c in combinations if (r := c.result())), key=badness)
    return [
        {**result["parameters"], sweep.metric: result[sweep.metric], "run": result["run"]}
        for result in results
    ]
