"""Train and measure the rows of a table with the command line, several at a time."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Columns = Mapping[str, tuple[str, int]]
"""Title and number of digits by the name of a result."""

Results = dict[str, list[dict[str, float]]]
"""Results of the seeds by row."""


def run(log: Path, *command: str) -> float:
    """Run a command of ``vae`` with its output in a file, and return the minutes of CPU time."""
    with log.open("w") as file:
        process = subprocess.Popen(["vae", *command], stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"vae {' '.join(command)} failed, see {log}")
    return (used.ru_utime + used.ru_stime) / 60


def fit(folder: Path, *command: str) -> Path:
    """Train unless it has been, note how long it takes, and return the checkpoint."""
    if not (folder / "minutes").exists():
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        log, place = folder / "fit.log", ["--output_dir", str(folder), "--name", "run"]
        used = run(log, "fit", *command, *place)
        (folder / "cpu_minutes").write_text(f"{used:.2f}")
        (folder / "minutes").write_text(f"{(time.perf_counter() - start) / 60:.2f}")
    *_, last = sorted((folder / "run").glob("version_*"), key=lambda p: int(p.name[8:]))
    return last / "checkpoints" / "best.ckpt"


def measure_all(
    rows: Iterable[str],
    seeds: Iterable[int],
    measure: Callable[[str, int], dict[str, float]],
    processes: int,
) -> Results:
    """Return what ``measure(row, seed)`` returns by row; what fails is said and left out."""
    results: Results = {row: [] for row in rows}
    with ThreadPoolExecutor(processes) as pool:
        jobs = {(row, seed): pool.submit(measure, row, seed) for seed in seeds for row in results}
        for (row, seed), job in jobs.items():
            try:
                results[row].append(job.result())
            except (RuntimeError, KeyError, ValueError) as error:
                print(f"{row}, seed {seed}: {error}", file=sys.stderr)
    return {row: found for row, found in results.items() if found}


def table(title: str, columns: Columns, results: Results) -> str:
    """Return a Markdown table: mean and, for several seeds, standard deviation."""
    lines = [f"| {title} | " + " | ".join(name for name, _ in columns.values()) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row, found in results.items():
        cells = [row]
        for key, (_, digits) in columns.items():
            values = [one[key] for one in found if key in one]
            text = "" if not values else f"{statistics.mean(values):.{digits}f}"
            if len(values) > 1:
                text += f" ± {statistics.stdev(values):.{digits}f}"
            cells.append(text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
