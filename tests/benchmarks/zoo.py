"""Measure every model with a density by one short protocol, for comparison and not for a record.

    python tests/benchmarks/zoo.py --out runs/zoo --processes 2

trains every row with its own configuration, but for 10 epochs, with a learning rate that falls to 0
along a cosine and, where the KL term is warmed up, 2,000 steps of it; measures it with ``vae test``
and prints a table for each data set. What is there already is not done again. ``--seeds 3``
trains with the seeds 0, 1 and 2. ``--full`` trains as long as each configuration says, which
takes hours; use another folder for it.
"""

import argparse
import json
import shlex
from pathlib import Path

from training_rows import fit, measure_all, run, table

WARMUP = "--model.schedule.steps 2000"
STATIC = "--config static_mnist"
CAPACITY = f"{STATIC} --model CapacityVAE --model.schedule LinearWarmup"
FLOW = "--config planar_flow --model.posterior"
DYNAMIC = "--config iwae --model"
NORMAL = "--model.prior StandardNormal --model.posterior GaussianPosterior"
FLAT_DECODER = "--model.decoder MLPDecoder --model.decoder.hidden [600,600]"
FEW = "--model.num_bounds 2 --model.num_samples 4"
ROWS = {
    "static MNIST": {
        "VAE": STATIC,
        "beta-VAE, beta = 4": f"{STATIC} --model BetaVAE --model.beta 4",
        "beta-VAE, beta warmed up to 1": f"{FLOW} GaussianPosterior {WARMUP}",
        "capacity of 25 nats": f"{CAPACITY} {WARMUP}",
        "free bits, 0.05 nats each": f"{STATIC} --model FreeBitsVAE --model.free_bits 0.05",
        "InfoVAE": f"{STATIC} --model InfoVAE",
        "beta-TCVAE": f"{STATIC} --model BetaTCVAE",
        "FactorVAE": f"{STATIC} --model FactorVAE",
        "DIP-VAE-II": f"{STATIC} --model DIPVAE",
        "mixture prior": "--config mog_vae",
        "VampPrior": "--config vamp_vae",
        "exemplar prior": "--config exemplar_vae",
        "RealNVP prior": "--config real_nvp_prior",
        "MAF prior": "--config maf_prior",
        "full covariance": f"--config full_covariance {WARMUP}",
        "planar flow": f"--config planar_flow {WARMUP}",
        "radial flow": f"--config radial_flow {WARMUP}",
        "Sylvester flow": f"--config sylvester_flow {WARMUP}",
        "IAF": f"{FLOW} IAFPosterior {WARMUP}",
        "Gumbel-softmax, 20 x 10": "--config categorical_vae",
        "200 Bernoulli latents": f"--config bernoulli_vae {WARMUP}",
    },
    "dynamic MNIST": {
        "VAE": f"{DYNAMIC} VAE --model.num_samples 1",
        "IWAE, k = 5": "--config iwae",
        "IWAE, k = 50": "--config iwae --model.num_samples 50",
        "DReG, k = 5": "--config dreg --model.num_samples 5",
        "CIWAE, k = 5": "--config ciwae --model.num_samples 5",
        "MIWAE(2, 4)": f"--config miwae {FEW}",
        "PIWAE(2, 4)": f"--config piwae {FEW}",
        "Hamiltonian VAE": "--config hamiltonian_vae",
        "label prior, IWAE, k = 5: -log p(x|y)": "--config label_prior",
        "two-layer VAE": "--config hierarchical_vae",
        "two-layer IWAE, k = 5": "--config hierarchical_iwae",
        "ladder VAE, five layers": f"--config ladder_vae {WARMUP}",
        "hyperspherical VAE, d = 11": "--config hyperspherical_vae",
        "the same, normal, d = 10": f"--config hyperspherical_vae {NORMAL} --model.latent_dim 10",
        "Poincare VAE, d = 2": "--config poincare_vae",
        "the same, normal, d = 2": f"--config poincare_vae {NORMAL} {FLAT_DECODER}",
    },
}
"""Options of ``vae fit`` by data set and row."""

COLUMNS = {
    "negative_log_likelihood": ("-log p(x)", 2),
    "standard_error": ("standard error", 2),
    "negative_elbo": ("-ELBO", 2),
    "kl": ("KL", 1),
    "minutes": ("CPU minutes", 1),
}
"""The standard error is that of -log p(x) over the images of one model."""


def measure(fit_options: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train one model, and return what ``vae test`` says about it."""
    if options.full:
        short = []
        fit_options = fit_options.replace(WARMUP, "")
    else:
        epochs = str(options.epochs)
        schedule = ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", epochs]
        length = ["--trainer.max_epochs", epochs, "--trainer.check_val_every_n_epoch", epochs]
        short = [*schedule, *length]
    checkpoint = fit(folder, *shlex.split(fit_options), *short, *options.more)
    path = checkpoint.parents[1] / "test" / "metrics.json"
    if not path.exists():
        draws = ["--metrics.log_likelihood.num_samples", str(options.num_samples)]
        run(folder / "test.log", "test", "--ckpt_path", str(checkpoint), *draws)
    report = json.loads(path.read_text())
    minutes = float((folder / "cpu_minutes").read_text())
    error = report["standard_errors"]["negative_log_likelihood"]
    return {**report["metrics"], "standard_error": error, "minutes": minutes}


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--full", action="store_true", help="train as long as configured")
    parser.add_argument("--num_samples", type=int, default=200, help="draws of -log p(x)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("more", nargs="*", help="after --: more options of vae fit for every row")
    options = parser.parse_args()
    for data, rows in ROWS.items():
        asked = [row for row in rows if not options.rows or row in options.rows]

        def one(row: str, seed: int, data: str = data) -> dict[str, float]:
            name = "".join(c if c.isalnum() else "_" for c in f"{data} {row} {seed}")
            seeded = f"{ROWS[data][row]} --seed_everything {seed}"
            return measure(seeded, options.out / name, options)

        results = measure_all(asked, range(options.seeds), one, options.processes)
        if results:
            print(table(data, COLUMNS, results), end="\n\n")


if __name__ == "__main__":
    main()
