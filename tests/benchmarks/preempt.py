"""Signal real SLURM jobs at random moments, and compare with one that was left alone.

    python tests/benchmarks/preempt.py --jobs 10

Needs ``sbatch`` and a cluster on which this machine is a node. Each job is the template of
configs/cluster with two processes on the CPU, and gets SIGUSR1 at random moments: in both processes
at once, some time apart, or in one of them only. It must be requeued every time, and end with the
weights, the optimizer and the log of the uninterrupted job, bit for bit.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import soak

TEMPLATE = Path(__file__).parents[2] / "configs" / "cluster" / "slurm.sbatch"
RESOURCES = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0"]
OPTIONS = [
    *("--model=VQVAE", "--model.encoder.hidden=8", "--model.decoder.hidden=8"),
    *("--model.quantizer.codebook_size=16", "--data.train_size=1040", "--data.val_size=80"),
    *("--data.test_size=8", "--data.batch_size=8", "--data.binarization=dynamic"),
    *("--trainer.max_epochs=6", "--trainer.log_every_n_steps=5", "--trainer.accelerator=cpu"),
    *("--trainer.strategy=ddp", "--trainer.enable_progress_bar=false"),
]
MODES = "both", "apart", "one"


def run(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def state(job: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    words = run("scontrol", "show", "job", job).split()
    return dict(word.partition("=")[::2] for word in words)


def wait(job: str, *states: str, seconds: float = 180) -> str:
    """Wait until a job is in one of some states.

    Raises:
        SystemExit: If it is not in time: it hangs.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (now := state(job)["JobState"]) in states:
            return now
        time.sleep(0.1)
    run("scancel", "--signal=KILL", "--full", job)
    raise SystemExit(f"job {job} hangs, {state(job)['JobState']}")


def processes(job: str) -> list[int]:
    """The training processes of a job on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        is_task = b"SLURM_PROCID=0" in environment or b"SLURM_PROCID=1" in environment
        if f"SLURM_JOB_ID={job}".encode() in environment and is_task and b"fit" in command:
            found.append(int(folder.name))
    return found


def wait_for_training(job: str, output: Path, starts: int) -> None:
    """Wait until a job trains after so many starts; earlier, it still imports for seconds."""
    wait(job, "RUNNING", "COMPLETED")
    while state(job)["JobState"] == "RUNNING":
        if output.is_file() and output.read_text().count("everything goes to") >= starts:
            return
        time.sleep(0.1)


def preempt(job: str, mode: str) -> None:
    """Signal a running job."""
    found = processes(job)
    if mode == "one":
        found = [random.choice(found)] if found else []
    for number in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGUSR1)
        if mode == "apart":
            time.sleep(random.uniform(0, 2))


def submit(folder: Path, name: str) -> str:
    """Start a job; its number."""
    command = ["sbatch", "--parsable", *RESOURCES, f"--output={folder}/{name}.out"]
    command += [str(TEMPLATE), *OPTIONS, f"--output_dir={folder}", f"--name={name}"]
    return run(*command)


def main() -> None:
    """Submit, signal, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--signals", type=int, default=2, help="per job")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    wrong = requeued = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = submit(folder, "whole")
        wait_for_training(whole, folder / "whole.out", 1)
        began = time.monotonic()
        wait(whole, "COMPLETED")
        seconds = time.monotonic() - began
        for i in range(args.jobs):
            mode = MODES[i % len(MODES)]
            job = submit(folder, f"job-{i}")
            for n in range(args.signals):
                wait_for_training(job, folder / f"job-{i}.out", n + 1)
                time.sleep(random.uniform(0, 0.8 * seconds / args.signals))
                preempt(job, mode)
                wait(job, "PENDING", "COMPLETED")
            wait(job, "COMPLETED", "FAILED", "CANCELLED")
            restarts = int(state(job)["Restarts"])
            requeued += restarts
            preempted = folder / f"job-{i}" / "version_0"
            found = soak.differences(folder / "whole" / "version_0", preempted)
            found += [] if len(list(preempted.parent.iterdir())) == 1 else ["several folders"]
            wrong += bool(found)
            print(
                f"job {job} ({mode}): requeued {restarts} times, {found or 'the same'}", flush=True
            )
            if found:
                print((folder / f"job-{i}.out").read_text()[-3000:])
    print(f"{args.jobs} jobs, {requeued} requeues, {wrong} ended differently, none hung")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
