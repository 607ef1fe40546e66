"""Measure whether beta-VAE disentangles slant and thickness of the bundled digits.

    python tests/benchmarks/disentanglement.py --out runs/beta

trains ``beta_digits`` with several betas and seeds with ``vae fit``, measures it with ``vae test``,
prints a table, and draws what each latent dimension knows about each factor. What is there already
is not trained again.
"""

import argparse
import json
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

NAMES = ["slant", "thickness", "rotation", "scale", "shift_x", "shift_y", "digit"]
SCORES = ["mig", "sap", "dci_disentanglement", "factor_vae_score", "active_units"]


def measure(folder: Path, beta: float, seed: int, epochs: int) -> dict:
    """Train one model and return what ``vae test`` says about it."""
    run = folder / f"beta_{beta:g}_seed_{seed}" / "version_0"
    best, report = run / "checkpoints" / "best.ckpt", run / "test" / "metrics.json"
    if not best.exists():
        options = ["--config", "beta_digits", "--model.beta", f"{beta:g}"]
        options += ["--seed_everything", str(seed), "--trainer.max_epochs", str(epochs)]
        place = ["--output_dir", str(folder), "--name", run.parent.name]
        subprocess.run(["vae", "fit", *options, *place], check=True)
    if not report.exists():
        quick = ["--metrics.log_likelihood", "null"]
        subprocess.run(["vae", "test", "--ckpt_path", str(best), *quick], check=True)
    return json.loads(report.read_text())["metrics"]


def knowledge(metrics: dict) -> np.ndarray:
    """Return what each latent dimension (columns) knows of each factor (rows).

    The dimension that knows most about slant comes first, then that of thickness.
    """
    table = np.array([metrics["predictability"].get(name, [0.0] * 10) for name in NAMES])
    slant, thickness = table[0].argmax(), table[1].argmax()
    rest = [i for i in table.sum(0).argsort()[::-1] if i not in (slant, thickness)]
    return table[:, list(dict.fromkeys([slant, thickness])) + rest]


def draw(reports: dict, betas: list[float], seeds: list[int], path: Path) -> None:
    """Draw one panel per run."""
    size = (2.3 * len(betas) + 1, 1.75 * len(seeds))
    figure, panels = plt.subplots(
        len(seeds), len(betas), figsize=size, layout="constrained", squeeze=False
    )
    for row, seed in zip(panels, seeds, strict=True):
        for axes, beta in zip(row, betas, strict=True):
            table = knowledge(reports[beta, seed])
            image = axes.imshow(table, vmin=0, vmax=1, cmap="Blues", aspect="auto")
            axes.set_xticks([])
            axes.set_yticks(range(len(NAMES)), NAMES if beta == betas[0] else [], fontsize=8)
            if beta == betas[-1]:
                axes.set_ylabel(f"seed {seed}", fontsize=9)
                axes.yaxis.set_label_position("right")
            if seed == seeds[0]:
                axes.set_title(f"beta = {beta:g}", fontsize=11)
            if seed == seeds[-1]:
                axes.set_xlabel("latent dimensions", fontsize=9)
    figure.colorbar(image, ax=panels, label="R² (digit: accuracy above chance)", shrink=0.7)
    figure.savefig(path)


def main() -> None:
    """Train, measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--betas", type=float, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    reports = {
        (beta, seed): measure(options.out, beta, seed, options.epochs)
        for beta in options.betas
        for seed in options.seeds
    }
    print("| beta | slant: R² of the best dimension, of the second | thickness | MIG | SAP | DCI "
          "disentanglement | FactorVAE score | active units |")  # fmt: skip
    print("|---" * 8 + "|")
    for beta in options.betas:
        found = [reports[beta, seed] for seed in options.seeds]
        known = np.array([[one["predictability"][n] for n in NAMES[:2]] for one in found])
        pairs = np.sort(known, 2)[:, :, ::-1][:, :, :2].mean(0)
        cells = [f"{beta:g}", *(f"{best:.2f}, {second:.2f}" for best, second in pairs)]
        means = {name: np.mean([one[name] for one in found]) for name in SCORES}
        cells += [f"{means['mig']:.3f}", *(f"{means[name]:.2f}" for name in SCORES[1:4])]
        print(f"| {' | '.join(cells)} | {means['active_units']:.1f} |")
    draw(reports, options.betas, options.seeds, options.out / "beta_and_disentanglement.png")


if __name__ == "__main__":
    main()
