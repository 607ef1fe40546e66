"""Fréchet distances of samples of autoencoders, before and after a density is fitted to latents.

    vae fit --config classifier
    python tests/benchmarks/autoencoders.py --out runs/autoencoders \
        --classifier runs/classifier/version_0/checkpoints/best.ckpt --seeds 3 --processes 2

trains every row and seed with ``vae fit`` on MNIST with 16 latent dimensions, samples from N(0, I)
where the model has it as a prior, from a Gaussian and from a mixture of 10 fitted to the latents
(``vae density fit``), and prints a table of the distances from as many test images. What is there
already is not done again. Ghosh et al. (2020), https://arxiv.org/abs/1903.12436, report the same
by other features: only ratios can be compared.
"""

import argparse
import json
import re
from pathlib import Path

from training_rows import fit, measure_all, run, table

ROWS = {
    "autoencoder": ["--config", "autoencoder"],
    "RAE, latents only": ["--config", "rae", "--model.regularizer", "none"],
    "RAE-L2": ["--config", "rae"],
    "RAE-GP": ["--config", "rae", "--model.regularizer", "gradient"],
    "WAE": ["--config", "wae"],
    "sliced WAE": ["--config", "sliced_wae"],
    "InfoVAE": ["--config", "info_vae"],
    "VAE": ["--config", "vae"],
    "VAE-GAN": ["--config", "vae_gan"],
}
"""Options by row; all have the same networks and 16 latent dimensions."""

WITHOUT_PRIOR = {"autoencoder", *(row for row in ROWS if row.startswith("RAE"))}

COLUMNS = {
    "reconstruction": ("reconstruction, nats", 1),
    "prior": ("N(0, I)", 1),
    "gaussian": ("fitted Gaussian", 1),
    "mixture": ("10 fitted Gaussians", 1),
    "ratio": ("ratio", 2),
    "floor": ("training images", 1),
}
"""``ratio`` is that of the first Gaussian, N(0, I) or the fitted one, to the mixture."""

DENSITIES = {"gaussian": "1", "mixture": "10"}
"""Number of components by column."""


def distances(log: Path) -> tuple[float, float]:
    """Return what ``vae sample`` has printed: the distances of samples and of training images."""
    found = re.findall(r"Fréchet distance of .*: ([\d.]+)$", log.read_text(), re.MULTILINE)
    samples, floor = map(float, found)
    return samples, floor


def sample(folder: Path, name: str, options: argparse.Namespace, *command: str) -> None:
    """Run ``vae sample`` unless it has been, and add its distance to the results."""
    log = folder / f"{name}.log"
    if not log.exists() or not re.search("Fréchet", log.read_text()):
        images = ["--n", str(options.n), "--out", str(folder / "samples.npz"), "--overwrite"]
        run(log, "sample", *command, *images, "--classifier", options.classifier)


def measure(row: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train one model, and return the distances of its samples by column."""
    folder = options.out / f"{row.replace(' ', '_').replace(',', '')}_{seed}"
    epochs = ["--trainer.max_epochs", str(options.epochs), *options.more]
    seeded = ["--seed_everything", str(seed)]
    checkpoint = fit(folder, *ROWS[row], "--model.latent_dim", "16", *epochs, *seeded)
    model = ["--ckpt_path", str(checkpoint)]
    report = checkpoint.parents[1] / "test" / "metrics.json"
    if not report.exists():
        run(folder / "test.log", "test", *model)
    result = {"reconstruction": json.loads(report.read_text())["metrics"]["reconstruction"]}
    if row not in WITHOUT_PRIOR:
        sample(folder, "prior", options, *model, "--seed", str(seed))
        result["prior"], _ = distances(folder / "prior.log")
    for name, components in DENSITIES.items():
        density = folder / f"{name}.pt"
        if not density.exists():
            kind = ["--kind", "gmm", "--components", components, "--out", str(density)]
            run(folder / f"{name}_fit.log", "density", "fit", *model, *kind)
        sample(folder, name, options, *model, "--density", str(density), "--seed", str(seed))
        result[name], result["floor"] = distances(folder / f"{name}.log")
    first = result.get("prior", result["gaussian"])
    return {**result, "ratio": first / result["mixture"]}


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--classifier", required=True, help="checkpoint of a classifier of MNIST")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--n", type=int, default=10_000, help="number of samples")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("more", nargs="*", help="after --: more options of vae fit for every row")
    options = parser.parse_args()
    results = measure_all(
        options.rows,
        range(options.seeds),
        lambda row, seed: measure(row, seed, options),
        options.processes,
    )
    print(table("model", COLUMNS, results))


if __name__ == "__main__":
    main()
