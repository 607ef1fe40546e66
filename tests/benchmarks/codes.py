"""Compare quantizers with equal bits: what they lose, and what a prior over their codes learns.

    python tests/benchmarks/codes.py --out runs/codes --classifier CKPT --seeds 3 --processes 2

trains an autoencoder and a prior given the class for every row and seed with ``vae fit``, measures
them with ``vae test`` and prints a table. What is there already is not trained again. ``--rows``
chooses some of them.
"""

import argparse
import json
from pathlib import Path

from training_rows import fit, measure_all, run, table

NETWORKS = [
    *("--model.encoder", "ResidualEncoder", "--model.encoder.hidden", "32"),
    *("--model.decoder", "ResidualDecoder", "--model.decoder.hidden", "32"),
]
PRIOR = [
    *("--config", "vq_prior", "--model.conditional", "true", "--model.network.dim", "64"),
    *("--data.batch_size", "32"),  # so small a training needs many updates
]
VQ = ["--config", "vq_vae", *NETWORKS, "--model.quantizer"]
ROWS = {
    "nearest code (EMA)": [*VQ, "VectorQuantizer"],
    "nearest code, rotation trick": [
        *VQ,
        *("VectorQuantizer", "--model.quantizer.codebook_update", "gradient"),
        *("--model.quantizer.gradient", "rotation"),
    ],
    "FSQ (8, 8, 8)": [*VQ, "FSQ"],
    "LFQ, 9 bits": [*VQ, "LFQ"],
    "SimVQ": [*VQ, "SimVQ"],
    "residual, 3 x 8 codes": [
        *VQ,
        *("ResidualQuantizer", "--model.quantizer.num_quantizers", "3"),
        *("--model.quantizer.quantizer", "VectorQuantizer"),
        *("--model.quantizer.quantizer.codebook_size", "8"),
    ],
    "dVAE (Gumbel)": ["--config", "d_vae", *NETWORKS],
    "VQ-VAE-2, 110 codes": [
        *("--config", "vq_vae_2", *NETWORKS, "--model.hidden", "32"),
        *("--model.quantizer", "VectorQuantizer", "--model.quantizer.codebook_size", "110"),
    ],
}
"""Options by row; all have 441 bits per image."""

COLUMNS = {
    "reconstruction": ("reconstruction, nats", 1),
    "mse": ("MSE", 4),
    "perplexity": ("perplexity", 0),
    "codes_used": ("codes used", 2),
    "code_nll": ("prior, nats", 1),
    "frechet_distance": ("Fréchet distance", 1),
    "minutes": ("CPU minutes", 1),
}


def measure(row: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train one autoencoder and its prior, and return what ``vae test`` says about them."""
    folder = options.out / f"{list(ROWS).index(row)}_{seed}"
    result = folder / "result.json"
    if not result.exists():
        common = ["--seed_everything", str(seed), "--trainer.max_epochs"]
        autoencoder = fit(folder / "autoencoder", *ROWS[row], *common, str(options.epochs))
        epochs = str(options.prior_epochs)
        schedule = [*common, epochs, "--lr_scheduler.T_max", epochs]
        given = ["--model.autoencoder", str(autoencoder)]
        prior = fit(folder / "prior", *PRIOR, *given, *schedule)
        test = ["--ckpt_path", str(prior), "--metrics.frechet.classifier", options.classifier]
        run(folder / "test.log", "test", *test)
        report = json.loads((prior.parents[1] / "test" / "metrics.json").read_text())["metrics"]
        minutes = [float(path.read_text()) for path in folder.glob("*/cpu_minutes")]
        result.write_text(json.dumps({**report, "minutes": sum(minutes)}))
    return json.loads(result.read_text())


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--classifier", required=True, help="checkpoint of a classifier")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of an autoencoder")
    parser.add_argument("--prior_epochs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    results = measure_all(
        [row for row in ROWS if not options.rows or row in options.rows],
        range(options.seeds),
        lambda row, seed: measure(row, seed, options),
        options.processes,
    )
    print(table("quantizer", COLUMNS, results))


if __name__ == "__main__":
    main()
