"""Five models of pythae and the same models here: time and value side by side.

    pip install pythae
    python tests/benchmarks/pythae_models.py --out runs/pythae --epochs 10 --seeds 3

Both sides train the same networks (fully connected, 400 hidden units, 20 latent dimensions) on
static MNIST for the same epochs, with batches of 128 and Adam at 1e-3. Each side has a process of
its own and keeps the weights that are best on the validation images. Time is the CPU time of the
process on one thread: ``vae fit`` with its figures and checkpoints, or pythae's trainer. Values are
computed on the test images by one function from the weights of either side.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning import VAE, WAE, StaticMNIST, VampPrior, load
from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.models.wae import squared_mmd
from vae_lightning.nets import MLPDecoder, MLPEncoder
from vae_lightning.randomness import Noise, generator

LATENT_DIM, HIDDEN, BATCH_SIZE = 20, 400, 128
COMPONENTS = 100
MMD_WEIGHT = 10.0
SQUARED_ERROR = 0.5**0.5
"""Standard deviation with which the Gaussian likelihood is the squared error, up to a constant."""

NETWORKS = [
    *("--model.latent_dim", str(LATENT_DIM)),
    *("--model.encoder", "MLPEncoder", "--model.encoder.hidden", f"[{HIDDEN}]"),
    *("--model.decoder", "MLPDecoder", "--model.decoder.hidden", f"[{HIDDEN}]"),
    *("--data", "StaticMNIST", "--data.batch_size", str(BATCH_SIZE)),
]
OPTIONS = {
    "VAE": ["--model", "VAE"],
    "BetaVAE": ["--model", "BetaVAE", "--model.beta", "4"],
    "IWAE": ["--model", "IWAE", "--model.num_samples", "5"],
    "VAMP": [
        *("--model", "VAE", "--model.prior", "VampPrior"),
        *("--model.prior.components", str(COMPONENTS)),
    ],
    "WAE_MMD": [
        *("--model", "WAE", "--model.mmd_weight", str(MMD_WEIGHT)),
        *("--model.likelihood", "Gaussian", "--model.likelihood.sigma", str(SQUARED_ERROR)),
    ],
}
"""Options of ``vae fit`` by pythae's names of the models."""


def model_of(name: str) -> LatentVariableModel:
    """Return the model, as ``vae fit`` builds it."""
    networks: dict[str, Any] = {
        "latent_dim": LATENT_DIM,
        "encoder": partial(MLPEncoder, hidden=(HIDDEN,)),
        "decoder": partial(MLPDecoder, hidden=(HIDDEN,)),
    }
    if name == "VAMP":
        return VAE(prior=partial(VampPrior, components=COMPONENTS), **networks)
    if name == "WAE_MMD":
        return WAE(likelihood=partial(Gaussian, sigma=SQUARED_ERROR), **networks)
    return VAE(**networks)


def splits() -> dict[str, Tensor]:
    """Return the images by split, float32."""
    data = StaticMNIST()
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    found = {}
    for split in ("train", "val", "test"):
        images = data.datasets[split]
        found[split] = images.__getitems__(range(len(images))).x.float()
        if found[split].max() > 1:
            found[split] /= 255
    return found


def train_pythae(name: str, seed: int, epochs: int, out: Path) -> None:
    """Train pythae's model and write its weights under the names of ours."""
    import pythae.models  # type: ignore[import-not-found]
    from pythae.models.base.base_utils import ModelOutput  # type: ignore[import-not-found]
    from pythae.models.nn import BaseDecoder, BaseEncoder  # type: ignore[import-not-found]
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # type: ignore[import-not-found]

    torch.manual_seed(seed)
    ours = model_of(name)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.net = ours.encoder

        def forward(self, x: Tensor) -> Any:
            features = self.net(x)
            if name == "WAE_MMD":
                return ModelOutput(embedding=features)
            mu, log_var = features.chunk(2, 1)
            return ModelOutput(embedding=mu, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.net = ours.decoder

        def forward(self, z: Tensor) -> Any:
            params = self.net(z)
            return ModelOutput(reconstruction=params if name == "WAE_MMD" else params.sigmoid())

    arguments: dict[str, Any] = {"input_dim": (1, 28, 28), "latent_dim": LATENT_DIM}
    if name == "WAE_MMD":
        config = pythae.models.WAE_MMD_Config(**arguments, reg_weight=MMD_WEIGHT)
    else:
        arguments["reconstruction_loss"] = "bce"
        extra = {
            "VAE": {},
            "BetaVAE": {"beta": 4.0},
            "IWAE": {"number_samples": 5},
            "VAMP": {"number_components": COMPONENTS},
        }
        config = getattr(pythae.models, f"{name}Config")(**arguments, **extra[name])
    model = getattr(pythae.models, name)(config, Encoder(), Decoder())
    images = splits()
    trainer = BaseTrainer(
        model=model,
        train_dataset=dataset(images["train"]),
        eval_dataset=dataset(images["val"]),
        training_config=BaseTrainerConfig(
            output_dir=str(out / "pythae"),
            num_epochs=epochs,
            learning_rate=1e-3,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            seed=seed,
            no_cuda=True,
        ),
    )
    trainer.train()
    (weights,) = out.glob("pythae/*/final_model/model.pt")
    held = torch.load(weights, weights_only=True)["model_state_dict"]
    renamed = {
        key.replace("encoder.net", "encoder").replace("decoder.net", "decoder"): value
        for key, value in held.items()
        if ".net." in key
    }
    if name == "VAMP":
        pixels = (held["pseudo_inputs.0.weight"].T + held["pseudo_inputs.0.bias"]).clamp(0, 1)
        logits = pixels.clamp(1e-6, 1 - 1e-6).logit().view(-1, 1, 28, 28)
        renamed["prior.pseudo_input_logits"] = logits
    torch.save(renamed, out / "weights.pt")


def dataset(x: Tensor) -> Any:
    """Return images as pythae takes them."""
    from pythae.data.datasets import BaseDataset  # type: ignore[import-not-found]

    return BaseDataset(x, torch.zeros(len(x)))


def measure(model: LatentVariableModel, name: str, x: Tensor) -> dict[str, float]:
    """Return what the table shows of a trained model."""
    model.eval()
    if name == "WAE_MMD":
        with torch.no_grad():
            z = model.posterior(x[:2000]).mean
            prior = torch.randn(z.shape, generator=generator("pythae"))
            mse = (model.reconstruct(x) - x).square().mean().item()
            return {"mse": mse, "mmd": squared_mmd(z, prior).item()}
    found: dict[str, list[Tensor]] = {"elbo": [], "log_prob": []}
    with torch.no_grad():
        for start in range(0, len(x), 500):
            part = x[start : start + 500]
            noise = Noise(torch.arange(start, start + len(part)), "pythae")
            q = model.posterior(part)
            draws = q.rsample(noise)
            ratio = model.log_ratio(draws)
            found["elbo"].append(-(model.log_likelihood(part, draws.z) + ratio))
            found["log_prob"].append(-model.log_marginal(part, None, noise, 200))
    return {key: torch.cat(values).mean().item() for key, values in found.items()}


def cpu_seconds() -> float:
    """Return the CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(side: str, name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train one side in a process of its own and measure it, unless that has been done."""
    out = options.out / f"{name}_{side}_{seed}"
    result = out / "result.json"
    if result.exists():
        held: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
        return held
    out.mkdir(parents=True, exist_ok=True)
    shared = ["--seed_everything", str(seed), "--trainer.max_epochs", str(options.epochs)]
    command = ["vae", "fit", *OPTIONS[name], *NETWORKS, *shared, "--output_dir", str(out)]
    if side == "pythae":
        script = [sys.executable, __file__, "--out", str(out), "--epochs", str(options.epochs)]
        command = [*script, "--train", name, "--seed", str(seed)]
    start = cpu_seconds()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (out / "log").open("w", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, env=environment)
    seconds = cpu_seconds() - start
    model: Any
    if side == "pythae":
        model = model_of(name)
        model.load_state_dict(torch.load(out / "weights.pt", weights_only=True))
    else:
        *_, checkpoint = sorted(out.glob("*/version_*/checkpoints/best.ckpt"))
        model = load(checkpoint)
    assert isinstance(model, nn.Module)
    found = {"seconds": seconds, **measure(model, name, splits()["test"])}
    result.write_text(json.dumps(found), encoding="utf-8")
    return found


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=OPTIONS, default=[*OPTIONS], help="only these")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_pythae(options.train, options.seed, options.epochs, options.out)
        return
    columns = {"seconds": 0, "elbo": 2, "log_prob": 2, "mse": 4, "mmd": 4}
    print("| model | side | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for name in options.rows:
        for side in ("pythae", "vae"):
            found = [run(side, name, seed, options) for seed in range(options.seeds)]
            cells = []
            for key, digits in columns.items():
                values = [one[key] for one in found if key in one]
                text = f"{statistics.mean(values):.{digits}f}" if values else ""
                if len(values) > 1:
                    text += f" \N{PLUS-MINUS SIGN} {statistics.stdev(values):.{digits}f}"
                cells.append(text)
            print(f"| {name} | {side} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
