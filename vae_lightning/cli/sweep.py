"""``vae sweep``: run the combinations of a W&B sweep file on this machine, without an account.

The file is what ``wandb sweep`` takes, see https://docs.wandb.ai/models/sweeps/define-sweep-configuration,
and each combination becomes the ``vae fit`` that ``wandb agent`` would start.
"""

import argparse
import csv
import io
import json
import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from vae_lightning.cli import exit_codes, rate_distortion, run_notes
from vae_lightning.cli.bundled_configs import find_config
from vae_lightning.cli.sweep_file import Sweep, label_combinations, short_names, value_text
from vae_lightning.errors import UserError, fail
from vae_lightning.files import atomic_write_text, expand
from vae_lightning.training import slurm
from vae_lightning.training.signals import REQUEUE

_RESULT = "result.json"
"""File in the folder of a combination; it has the metric once the training is complete."""

_RUNNING: set[subprocess.Popen[bytes]] = set()
"""The trainings that are running."""


@dataclass(frozen=True)
class Combination:
    """One ``vae fit`` of a sweep.

    Attributes:
        number: Its position, from 0.
        parameters: Values by the name of the option.
        folder: Folder of its runs, ``version_0`` and so on.
        options: All options of ``vae fit``.
    """

    number: int
    parameters: dict[str, Any]
    folder: Path
    options: list[str]

    def result(self) -> dict[str, Any] | None:
        """Return the result, None if no training with these options is complete."""
        known = self._known()
        return known if known.get("options") == self.options and "run" in known else None

    def _known(self) -> dict[str, Any]:
        path = self.folder / _RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _interrupted(self) -> Path | None:
        """Return the last checkpoint of an incomplete training with these options."""
        known = self._known()
        if known.get("options") != self.options or "run" in known:
            return None
        checkpoints = self.folder.glob("version_*/checkpoints/last.ckpt")
        return max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)

    def train(self, metric: str) -> dict[str, Any]:
        """Train, or continue an interrupted training, and write the result into the folder.

        Args:
            metric: Column of ``metrics.csv``.

        Raises:
            UserError: If the training fails or has no such metric.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        before, started = set(self.folder.glob("version_*")), time.monotonic()
        log, last = self.folder / "log.txt", self._interrupted()
        atomic_write_text(self.folder / _RESULT, json.dumps({"options": self.options}) + "\n")
        code = self._run(log, last)
        # An earlier sweep may have been interrupted after the end of the training.
        if code and not (last and code == exit_codes.ALREADY_COMPLETE):
            raise UserError(f"{_last_error(log) or f'exit code {code}'}, see {log}")
        created = sorted(set(self.folder.glob("version_*")) - before)
        if not created and not last:
            raise UserError(f"it left no run folder, see {log}")
        run = created[-1] if created else last.parents[1]  # type: ignore[union-attr]
        value = _last_value(run / "metrics.csv", metric)
        result = {
            "options": self.options,
            "parameters": self.parameters,
            metric: value if math.isfinite(value) else None,  # JSON has no NaN
            "run": str(run),
            "seconds": round(time.monotonic() - started),
        }
        atomic_write_text(self.folder / _RESULT, json.dumps(result, indent=2) + "\n")
        return result

    def _run(self, log: Path, last: Path | None) -> int:
        """Run ``vae fit`` and return its exit code."""
        resume = [f"--ckpt_path={last}"] if last else []
        command = [sys.executable, "-m", "vae_lightning", "fit", *self.options, *resume]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            _RUNNING.add(process)
            code = process.wait()
            _RUNNING.discard(process)
        return code


def _last_error(log: Path) -> str:
    """Return the error that a training has printed, for the message only."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "vae: error: " in line]
    return errors[-1].partition("vae: error: ")[2] if errors else ""


def _last_value(path: Path, metric: str) -> float:
    """Return the last value of a metric, as W&B's summary has it."""
    if not path.is_file():
        raise UserError(f"{path} is missing: leave out options that switch logging off")
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    values = [row[metric] for row in rows if row.get(metric)]
    if not values:
        known = sorted({name for row in rows for name in row if name.startswith("val/")})
        raise UserError(f"{path} has no {metric}, only {', '.join(known)}")
    return float(values[-1])


def plan(
    sweep: Sweep, combinations: Sequence[dict[str, Any]], parent: Path, extra: Sequence[str]
) -> list[Combination]:
    """Give each combination its options and a folder whose name describes it.

    Args:
        sweep: The sweep.
        combinations: Values of all parameters, for each combination.
        parent: Folder of the sweep.
        extra: More options of every ``vae fit``.
    """
    planned = []
    labels = label_combinations(list(sweep.parameters), combinations)
    for number, (label, values) in enumerate(zip(labels, combinations, strict=True)):
        where = [f"--output_dir={parent}", f"--name={label}"]
        flags = [f"--{name}={'null' if v is None else v}" for name, v in values.items()]
        options = [*sweep.options, *extra, *where, *flags]
        planned.append(Combination(number, values, parent / label, options))
    return planned


def run(args: Sequence[str]) -> None:
    """Run ``vae sweep`` with its arguments.

    Raises:
        SystemExit: With one of the codes of `exit_codes`.
    """
    options, extra = _parser().parse_known_args(args)
    try:
        _run(options, extra)
    except UserError as error:
        fail(str(error), exit_codes.ERROR)
    except KeyboardInterrupt:
        message = "interrupted; the same command continues with what is not complete"
        fail(message, exit_codes.INTERRUPTED)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see vae sweep --help", exit_codes.WRONG_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vae sweep",
        usage="vae sweep FILE [options] [options of vae fit]",
        description="Train once for each combination of options in a W&B sweep file, without W&B. "
        "If the command is given again, complete trainings are skipped. early_terminate is "
        "ignored.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a file, or the name of a bundled sweep")
    parser.add_argument("--name", help="name of the sweep; by default the one in the file")
    parser.add_argument(
        "--output_dir", default="runs", help="runs go to OUTPUT_DIR/NAME/COMBINATION/version_N"
    )
    parser.add_argument("--list", action="store_true", help="list the combinations, train nothing")
    parser.add_argument(
        "--only",
        type=int,
        metavar="I",
        help="train only combination number I, as in a SLURM array: --only $SLURM_ARRAY_TASK_ID",
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of trainings at a time")
    parser.add_argument("--trials", type=int, help="number of combinations to draw, if not a grid")
    parser.add_argument("--seed", type=int, default=0, help="seed of these draws")
    return parser


def _run(options: argparse.Namespace, extra: Sequence[str]) -> None:
    sweep = Sweep.read(find_config(options.file, "sweep", "sweep"))
    parent = expand(options.output_dir) / (options.name or sweep.name)
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
        again = "the same command tries them again"
        raise UserError(f"{failed} of {len(chosen)} combinations failed; {again}")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Pass SIGTERM on to the trainings, which save; then end as after Ctrl-C."""
    for process in _RUNNING:
        process.terminate()
    raise KeyboardInterrupt


def _train(todo: Sequence[Combination], metric: str, jobs: int) -> int:
    """Train, print a line for each, and return how many failed."""
    before = signal.signal(signal.SIGTERM, _stop)
    if slurm.job() and REQUEUE:
        signal.signal(REQUEUE, signal.SIG_IGN)  # the trainings obey it
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
    """Print and write a table of the complete combinations, the best first."""
    rows = _rows(combinations, sweep)
    if not rows:
        return
    _write_table(parent / "sweep.csv", rows)
    names = short_names(list(sweep.parameters))
    table = [[*names.values(), sweep.metric]]
    for row in rows:
        table.append([*(value_text(row[name]) for name in names), _number(row[sweep.metric])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(f"\nTable:       {parent / 'sweep.csv'}")
    if picture := _draw(combinations, sweep, parent):
        print(f"Picture:     {picture}")
    best = run_notes.read(Path(rows[0]["run"])).get("best")
    if best:
        command = shlex.join(["vae", "test", "--ckpt_path", str(Path(rows[0]["run"], best))])
        print(f"Best:        {command}")


def _draw(combinations: Sequence[Combination], sweep: Sweep, parent: Path) -> Path | None:
    """Draw and write the rate-distortion plane, None if fewer than two trainings have an ELBO."""
    measured = []
    for combination in combinations:
        result = combination.result()
        if result and (found := _last_rate(combination, Path(result["run"]))):
            measured.append(found)
    if len(measured) < 2:
        return None
    path = parent / f"{rate_distortion.NAME}.png"
    figure = rate_distortion.figure(
        measured, title=sweep.name, note="last validation of each training"
    )
    figure.savefig(path)
    _write_table(path.with_suffix(".csv"), [found.row() for found in measured])
    return path


def _last_rate(combination: Combination, run: Path) -> rate_distortion.Measured | None:
    """Return the rate and the distortion of a training, which may have been moved."""
    run = run if run.is_dir() else combination.folder / run.name
    return rate_distortion.of_log(run, combination.folder.name, combination.parameters)


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())


def _rows(combinations: Sequence[Combination], sweep: Sweep) -> list[dict[str, Any]]:
    """Return parameters, metric and run folder of each result; diverged trainings come last."""

    def badness(result: dict[str, Any]) -> float:
        value = result[sweep.metric]
        return math.inf if value is None else -value if sweep.maximize else value

    results = sorted((r for c in combinations if (r := c.result())), key=badness)
    return [
        {**result["parameters"], sweep.metric: result[sweep.metric], "run": result["run"]}
        for result in results
    ]
