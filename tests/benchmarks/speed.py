"""How fast ``vae fit`` is beside loops written by hand: a table, and the same as JSON.

    python tests/benchmarks/speed.py --out speed.json

Every figure is a median over rounds; in each round all sides of a workload run one after the
other, each in a process of its own, so that what else the machine does meets all of them. The first
epoch of each process is left out: it warms up and compiles. Images are MNIST's where
``VAE_DATA_ROOT`` says where it is, the bundled digits otherwise.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
WORKLOADS = {"conv": 12_800, "mlp-20": 10_000, "mlp-100": 50_000, "vq": 2_560}
"""Images of an epoch: seconds of work on two cores."""
SIDES = {
    "plain": "the loop everybody writes: Pillow images, ToTensor, Adam",
    "bare": "written by hand: images in memory, fused Adam, our networks",
    "floor": "the same, networks compiled",
    "pythae": "pythae's trainer",
    "vae-fit": "vae fit",
}


def measure(side: str, workload: str, images: int, epochs: int) -> dict[str, Any]:
    """Seconds of each epoch and peak memory of one side.

    Raises:
        SystemExit: If it fails; without one of its sides there is nothing to compare.
    """
    command = [sys.executable, HERE / "sides.py", side, workload]
    command += ["--images", str(images), "--epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    if done.returncode:
        raise SystemExit(f"{side} on {workload} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(workload: str, images: int, rounds: int, epochs: int) -> dict[str, Any]:
    """All sides of a workload: seconds per epoch, images per second, peak memory, ratios."""
    sides = [side for side in SIDES if not (workload == "vq" and side == "plain")]
    sides = [side for side in sides if side != "pythae" or _has_pythae()]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for side in sides:
            result = measure(side, workload, images, epochs)
            seconds[side] += result["epochs"][1:]
            memory[side] = max(memory.get(side, 0), result["peak_memory_gb"])
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    fastest_by_hand = min(medians["bare"], medians["floor"])
    return {
        side: {
            "seconds_per_epoch": median,
            "images_per_second": images / median,
            "peak_memory_gb": memory[side],
            "vae_fit_is": medians["vae-fit"] / median,
            "of_the_fastest_by_hand": median / fastest_by_hand,
        }
        for side, median in medians.items()
    }


def start_up(rounds: int) -> dict[str, float]:
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
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _has_pythae() -> bool:
    from importlib.util import find_spec

    return find_spec("pythae") is not None


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="per process; the first is left out")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "start_up": start_up(args.rounds)}
    print(report["machine"], *report["start_up"].items(), sep="\n")
    for workload in args.workloads:
        report[workload] = compare(workload, WORKLOADS[workload], args.rounds, args.epochs)
        print(f"\n{workload}, {WORKLOADS[workload]:,} images per epoch")
        for side, row in report[workload].items():
            print(
                f"  {SIDES[side]:<62}{row['seconds_per_epoch']:8.2f} s/epoch"
                f"{row['images_per_second']:10,.0f} images/s{row['peak_memory_gb']:6.2f} GB"
                f"   vae fit takes {row['vae_fit_is']:.2f} of it"
            )
        if args.out:
            args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
