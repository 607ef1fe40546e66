"""Kill trainings at random moments, continue them, and compare with one that was left alone.

    python tests/benchmarks/soak.py --kills 100

Each variant is trained once without interruption, and once more with ``kill -9`` at random moments:
among them while a checkpoint is being written, since one is written every few steps. Every
continuation is ``vae fit --ckpt_path .../last.ckpt``. The weights, the optimizer, the log and the
pictures must then be the same, bit for bit. Trainings are forked off one process that has imported
everything, which takes the longest otherwise.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from vae_lightning.__main__ import main as vae
from vae_lightning.cli.run_folders import last_checkpoint, next_free

CONV = ["--model.encoder.channels=[4,8]", "--model.decoder.channels=[8,4]"]
RESIDUAL = ["--model.encoder.hidden=8", "--model.decoder.hidden=8"]
WARMUP = ["--model.schedule=LinearWarmup", "--model.schedule.steps=30"]
PLATEAU = [
    "--lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
    *("--lr_scheduler.monitor=val/loss", "--lr_scheduler.patience=0"),
]
WARM_LR = ["--lr_scheduler=CosineAnnealingLR", "--lr_scheduler.T_max=5"]
VARIANTS = {
    "VAE": CONV,
    "BetaVAE": [*CONV, *WARMUP, *PLATEAU],
    "CVAE": [*CONV, "--training.steps_per_call=1", "--data.num_workers=1"],
    "IWAE": [*CONV, "--model.num_samples=2", "--optimizer=SGD", "--optimizer.lr=1e-4"],
    "VQVAE": [*RESIDUAL, "--model.quantizer.codebook_size=16"],
    "VAE+VampPrior": [*CONV, "--model.prior=VampPrior", "--model.prior.components=10"],
    "VAE+IAF": [*CONV, "--model.posterior=IAFPosterior", "--model.posterior.hidden=[16]"],
    "BetaTCVAE": CONV,
    "WAE": CONV,
    "HierarchicalVAE": [*CONV, "--model.latent_dim=8", "--model.top_dim=4", "--model.hidden=[8]"],
    "CategoricalVAE": CONV,
    "FactorVAE": [*CONV, "--model.critic_hidden=[8]", "--critic_optimizer.lr=1e-4"],
    "AdversarialAutoencoder": [*CONV, *WARM_LR, "--model.critic_hidden=[8]"],
}
"""Models, and options after a plus sign, that are trained."""

EPOCHS = 5
COMMON = [
    *("--data.train_size=330", "--data.val_size=40", "--data.test_size=8", "--data.batch_size=16"),
    *(
        "--data.binarization=dynamic",
        f"--trainer.max_epochs={EPOCHS}",
        "--trainer.log_every_n_steps=3",
    ),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    *("--last.every_n_steps=4", "--figures.traversals=null", "--figures.latents=null"),
]


def start(args: list[str], log: Path) -> int:
    """Fork a training; the number of its process, which leads a group of its own."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        vae(args)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: int, log: Path, killed: int = 0) -> int:
    """Wait for the end of a training: 0, or the signal that killed it.

    Raises:
        SystemExit: If it failed.
    """
    _, status = os.waitpid(child, 0)
    if status not in (0, killed):
        raise SystemExit(f"a training ended with status {status}:\n{log.read_text()[-3000:]}")
    return status


def is_finished(run: Path) -> bool:
    """Whether a training was killed after the checkpoint of its end."""
    path = last_checkpoint(run)
    progress = path.is_file() and torch.load(path, weights_only=True)["loops"]["fit_loop"]
    return bool(progress) and progress["epoch_progress"]["current"]["processed"] == EPOCHS


def train_with_kills(
    args: list[str], parent: Path, seconds: float, kills: int, log: Path
) -> tuple[Path, int]:
    """Train in spite of up to ``kills`` kills.

    Args:
        args: Options of the training.
        parent: Folder of its runs.
        seconds: How long it takes; a kill comes at a random moment before.
        kills: Number of kills; it may have ended before all of them.
        log: Where it prints to.

    Returns:
        The folder of the run that ended, and the number of kills.
    """
    run = next_free(parent)
    for done in range(kills + 1):
        last = last_checkpoint(run)
        if last.is_file():
            child = start(["fit", "--ckpt_path", str(last)], log)
        else:  # killed before its first checkpoint: from the start
            run = next_free(parent)
            child = start(args, log)
        if done == kills:
            finish(child, log)
            break
        time.sleep(random.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):  # not a group yet
            os.killpg(child, signal.SIGKILL)
        if finish(child, log, signal.SIGKILL) == 0 or is_finished(run):
            break
    return run, done


def differences(whole: Path, killed: Path) -> list[str]:
    """What differs between two folders of runs."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (
            torch.load(run / "checkpoints" / name, weights_only=True) for run in (whole, killed)
        )
        parts = "state_dict", "optimizer_states", "lr_schedulers", "global_step"
        found += [f"{name}: {part}" for part in parts if not _same(one[part], other[part])]
        if one["vae_lightning"]["step"] != other["vae_lightning"]["step"]:
            found.append(f"{name}: step")
    if (whole / "metrics.csv").read_text() != (killed / "metrics.csv").read_text():
        found.append("metrics.csv")
    pictures = [
        {str(p.relative_to(run)): p.read_bytes() for p in run.glob("figures/*/*.png")}
        for run in (whole, killed)
    ]
    if pictures[0] != pictures[1]:
        found.append("figures")
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.equal(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def main() -> None:
    """Train, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="per variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)
    total, wrong = 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log"
        for variant in args.variants:
            common = ["fit", f"--model={variant.partition('+')[0]}", *VARIANTS[variant], *COMMON]
            common += [f"--output_dir={folder / variant}"]
            began = time.monotonic()
            finish(start([*common, "--name=whole"], log), log)
            seconds = time.monotonic() - began
            whole = folder / variant / "whole" / "version_0"
            survived = 0
            while survived < args.kills:
                killed = [*common, "--name=killed"]
                left = args.kills - survived
                run, kills = train_with_kills(
                    killed, whole.parents[1] / "killed", seconds, left, log
                )
                survived += kills
                if found := differences(whole, run):
                    wrong += 1
                    print(f"{variant}: after {kills} kills, different: {', '.join(found)}")
            total += survived
            print(f"{variant}: {survived} kills, the whole training takes {seconds:.1f} s")
    print(f"{total} kills, {wrong} trainings that ended differently")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
