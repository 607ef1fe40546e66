"""How fast ``vae`` is beside loops written by hand: a table, and the same as JSON.

    python tests/benchmarks/speed.py --out speed.json

Every figure is a median over rounds; in each round all sides of a workload run one after the
other, each in a process of its own, so that what else the machine does meets all of them. The first
epoch (or evaluation) of each process is left out: it warms up and compiles. Images are MNIST's
where ``VAE_DATA_ROOT`` says where it is, the bundled digits otherwise. pythae takes part where it
is installed. A folder of images has a benchmark of its own, ``folder.py``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sides
import torch
from folder import make

HERE = Path(__file__).parent
IMAGES = {
    "conv": 55_000,
    "mlp-20": 55_000,
    "mlp-100": 55_000,
    "vq": 2_560,
    "likelihood": 256,
    "likelihood-mlp": 500,
}
"""Images of an epoch or evaluation: seconds of work on two cores."""

SIDES = {
    "plain": "the loop everybody writes: Pillow images, ToTensor, Adam",
    "bare": "by hand: images and freed memory kept, fused Adam, our nets",
    "floor": "the same, networks compiled",
    "pythae": "pythae, the networks of the first",
    "vae": "vae fit, vae test",
}

STARTS = {
    "bundled digits": [],
    "bundled digits, drawn for the first time": [],
    "MNIST": ["--config=vae"],
    "VQ-VAE on MNIST": ["--config=vq_vae"],
    "2,000 images of a folder, held in memory": ["--data=ImageFolder", "--data.root={folder}"],
    "the same, read as needed by two workers": [
        *("--data=ImageFolder", "--data.root={folder}"),
        *("--data.memory_limit=0", "--data.num_workers=2"),
    ],
}
"""Trainings by what they are started on."""


def output(command: list[Any], **environment: str) -> dict[str, Any]:
    """The JSON in the last line that a Python program prints.

    Raises:
        SystemExit: If it fails; without one of its figures there is nothing to compare.
    """
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=HERE,
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(workload: str, images: int, rounds: int, epochs: int) -> dict[str, Any]:
    """All sides of a workload: seconds per epoch, images per second, peak memory, ratios."""
    names = [side for side in SIDES if side != "pythae" or find_spec("pythae")]
    seconds: dict[str, list[float]] = {side: [] for side in names}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for side in names:
            command = ["sides.py", side, workload, "--images", images, "--rounds", epochs]
            result = output(command)
            seconds[side] += result["seconds"][1:]
            memory[side] = max(memory.get(side, 0), result["peak_memory_gb"])
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    fastest_by_hand = min(medians["bare"], medians["floor"])
    report = {
        side: {
            "seconds_per_epoch": median,
            "images_per_second": images / median,
            "peak_memory_gb": memory[side],
            "vae_is": medians["vae"] / median,
            "of_the_fastest_by_hand": median / fastest_by_hand,
        }
        for side, median in medians.items()
    }
    if sides.WORKLOADS[workload].evaluation:
        for row in report.values():
            row["microseconds_per_draw"] = 1e6 / row["images_per_second"] / sides.DRAWS
    return report


def rows(workload: str, report: dict[str, Any]) -> list[str]:
    """The table of a workload."""
    what = f"{IMAGES[workload]:,} images per epoch"
    if sides.WORKLOADS[workload].evaluation:
        what = f"{IMAGES[workload]:,} images, {sides.DRAWS} draws each"
    table = [f"\n{workload}, {what}"]
    for side, row in report.items():
        table.append(
            f"  {SIDES[side]:<62}{row['seconds_per_epoch']:8.2f} s"
            f"{row['images_per_second']:10,.0f} images/s{row['peak_memory_gb']:6.2f} GB"
            f"   vae takes {row['vae_is']:.2f} of it"
        )
        if "microseconds_per_draw" in row:
            table[-1] += f"   {row['microseconds_per_draw']:.1f} us per draw"
    return table


def commands(rounds: int) -> dict[str, float]:
    """Seconds of ``vae --version`` and ``vae --help``, medians."""
    found = {}
    for option in ("--version", "--help"):
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            command = [sys.executable, "-m", "vae_lightning", option]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        found[f"vae {option}"] = statistics.median(times)
    return found


def starts(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the imports of ``vae fit``, and from then to its first loss, medians."""
    found: dict[str, dict[str, list[float]]] = {}
    once = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "images", 2_000)
        for i in range(rounds):
            for name, options in STARTS.items():
                given = [option.format(folder=f"{folder}/images") for option in options]
                command = ["watched.py", *given, *once, "--trainer.limit_val_batches=1"]
                first = name.endswith("for the first time")
                environment = {"XDG_CACHE_HOME": f"{folder}/cache-{i}"} if first else {}
                for key, value in output(command, **environment).items():
                    found.setdefault(name, {}).setdefault(key, []).append(value)
    return {
        name: {key: statistics.median(values) for key, values in times.items()}
        for name, times in found.items()
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def main() -> None:
    """Metric, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = ["start", *IMAGES]
    parser.add_argument("--workloads", nargs="+", choices=choices, default=choices)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="per process; the first is left out")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": machine()}
    print(report["machine"])
    for workload in args.workloads:
        if workload == "start":
            report["commands"], report["start"] = commands(args.rounds), starts(args.rounds)
            print(*(f"{name}: {took:.2f} s" for name, took in report["commands"].items()), sep="\n")
            print("\nvae fit: seconds of the imports, and from then to the first loss")
            for name, times in report["start"].items():
                print(f"  {name:<62}{times['imports']:8.2f}{times['first_step']:8.2f}")
        else:
            report[workload] = compare(workload, IMAGES[workload], args.rounds, args.epochs)
            print(*rows(workload, report[workload]), sep="\n", flush=True)
        if args.out:
            args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
