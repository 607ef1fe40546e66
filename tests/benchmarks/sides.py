"""The sides of the comparison: each trains, or evaluates, the same network its own way.

Run in a process of its own by ``speed.py``: ``python sides.py SIDE WORKLOAD --images N --rounds R``
prints one line of JSON: seconds of each round (an epoch, or one evaluation) and the peak memory.
"""

import argparse
import json
import math
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # for --trainer.callbacks+=clocks.Epochs

import clocks
import textbook
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vae_lightning.__main__ import main
from vae_lightning.training import cpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DRAWS = 200
"""Draws per image where the likelihood is evaluated."""


class Workload(NamedTuple):
    """What is done: options of ``vae fit``, and the same for a loop written by hand."""

    options: list[str]
    batch_size: int
    network: str
    evaluation: bool = False


MLP = ["--model.encoder=MLPEncoder", "--model.decoder=MLPDecoder"]
WORKLOADS = {
    "conv": Workload(["--model=VAE"], 128, "conv"),
    "mlp-20": Workload(["--model=VAE", *MLP], 20, "mlp"),
    "mlp-100": Workload(["--model=VAE", *MLP], 100, "mlp"),
    "vq": Workload(["--model=VQVAE"], 128, "vq"),
    "likelihood": Workload(["--model=VAE"], 128, "conv", evaluation=True),
    "likelihood-mlp": Workload(["--model=VAE", *MLP], 100, "mlp", evaluation=True),
}


def images(n: int) -> Tensor:
    """The first ``n`` training images of MNIST, or of the bundled digits: uint8, (n, 1, 28, 28)."""
    from vae_lightning import MNIST, Digits

    data = MNIST() if os.environ.get("VAE_DATA_ROOT") else Digits()
    data.prepare_data()
    data.setup("fit")
    train: Any = data.datasets["train"]
    return train.images.x[:n]


def textbook_model(workload: Workload) -> Any:
    """The network of a workload as textbooks write it."""
    return textbook.VQVAE() if workload.network == "vq" else textbook.VAE(workload.network)


def our_model(workload: Workload) -> Any:
    """The model that ``vae fit`` trains, without Lightning."""
    import vae_lightning
    from vae_lightning.nets import MLPDecoder, MLPEncoder

    if workload.network == "vq":
        return vae_lightning.VQVAE()
    pair = {"encoder": MLPEncoder, "decoder": MLPDecoder}
    return vae_lightning.VAE(**(pair if workload.network == "mlp" else {}))


def plain(x: Tensor, workload: Workload, rounds: int) -> list[float]:
    """The loop that everybody writes: DataLoader, ToTensor, Adam, and loss.item() at every step."""
    model = textbook_model(workload).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(
        textbook.PillowImages(x), batch_size=workload.batch_size, shuffle=not workload.evaluation
    )
    times = []
    for _ in range(rounds):
        start = clocks.now()
        total = 0.0
        for batch, _labels in loader:
            if workload.evaluation:
                with torch.no_grad():
                    total += model.log_likelihood(batch.to(DEVICE), DRAWS).sum().item()
                continue
            loss = model(batch.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        times.append(clocks.now() - start)
    return times


def train(model: Any, x: Tensor, workload: Workload, optimizer: torch.optim.Optimizer) -> None:
    """One epoch."""
    for index in torch.randperm(len(x), device=DEVICE).split(workload.batch_size):
        batch = x[index].float() / 255
        if workload.network == "vq":
            loss = model.objective(model.terms(batch, None, None)).mean()
        else:
            q = model.posterior(batch)
            epsilon = torch.randn_like(q.mu)
            params = model.decoder(torch.addcmul(q.mu, (0.5 * q.log_var).exp(), epsilon), None)
            loss = (model.prior.kl(q).sum(1) - model.likelihood.log_prob(params, batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def log_likelihoods(model: Any, x: Tensor, batch_size: int, draws: int) -> Tensor:
    """Log p(x) of images (N, 1, 28, 28), uint8, by importance sampling, (N,)."""
    found = []
    for images in x.split(batch_size):
        batch = images.float() / 255
        q = model.posterior(batch)
        sigma = (0.5 * q.log_var).exp()
        # As many latents at once as fit into a CPU's cache.
        n = max(1, (256 if DEVICE == "cpu" else 16_384) // len(batch))
        total = torch.full((len(batch),), -math.inf, device=DEVICE)
        for first in range(0, draws, n):
            epsilon = torch.randn(len(batch), min(n, draws - first), sigma.shape[1], device=DEVICE)
            z = torch.addcmul(q.mu[:, None], sigma[:, None], epsilon)
            params = model.decoder(z.flatten(0, 1), None).unflatten(0, epsilon.shape[:2])
            log_p_x = model.likelihood.log_prob(params, batch[:, None])
            log_p_z_to_q = 0.5 * (epsilon.square() - z.square() + q.log_var[:, None]).sum(2)
            total = torch.logaddexp(total, (log_p_x + log_p_z_to_q).logsumexp(1))
        found.append(total - math.log(draws))
    return torch.cat(found)


def bare(x: Tensor, workload: Workload, rounds: int, compiled: bool = False) -> list[float]:
    """No framework: images in memory, torch's own noise, fused Adam, our networks.

    What ``vae`` saves on a CPU is saved here too.
    """
    cpu.tune_process()
    model, x = our_model(workload).to(DEVICE), x.to(DEVICE)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    if compiled:
        model.encoder.compile()
        model.decoder.compile()
    times = []
    for _ in range(rounds):
        start = clocks.now()
        if workload.evaluation:
            log_likelihoods(model.eval(), x, workload.batch_size, DRAWS).sum().item()
        else:
            train(model, x, workload, optimizer)
        times.append(clocks.now() - start)
    return times


def floor(x: Tensor, workload: Workload, rounds: int) -> list[float]:
    """As `bare`, the networks compiled."""
    return bare(x, workload, rounds, compiled=True)


def vae(x: Tensor, workload: Workload, rounds: int, extra: Sequence[str] = ()) -> list[float]:
    """``vae fit``, or ``vae test`` with all that it measures, through the command line."""
    n = len(x)
    name = "MNIST" if os.environ.get("VAE_DATA_ROOT") else "Digits"
    quiet = ["--trainer.enable_progress_bar=false"]
    watched = [*quiet, "--trainer.callbacks+=clocks.Epochs", *extra]
    with tempfile.TemporaryDirectory() as folder:
        fit = ["fit", *workload.options, f"--data={name}", f"--output_dir={folder}", "--name=it"]
        fit += [f"--data.batch_size={workload.batch_size}", "--trainer.num_sanity_val_steps=0"]
        if not workload.evaluation:
            # The rest of the training images is the validation set, which is not timed.
            fit += [f"--data.val_size={60_000 - n}", "--trainer.check_val_every_n_epoch=1000"]
            main([*fit, f"--trainer.max_epochs={rounds}", *watched])
            return clocks.Epochs.seconds
        main([*fit, "--trainer.limit_train_batches=1", "--trainer.max_epochs=1", *quiet])
        clocks.Epochs.seconds.clear()
        for _ in range(rounds):
            limit = f"--trainer.limit_test_batches={n // workload.batch_size}"
            checkpoint = f"--ckpt_path={folder}/it/version_0/checkpoints/last.ckpt"
            draws = f"--metrics.log_likelihood.num_samples={DRAWS}"
            main(["test", checkpoint, limit, draws, *watched])
    return clocks.Epochs.seconds


def pythae(x: Tensor, workload: Workload, rounds: int) -> list[float]:
    """pythae's trainer, or its `get_nll`, with the textbook's networks (tried: pythae 0.1.2)."""
    from pythae.data.datasets import BaseDataset  # type: ignore[import-not-found]
    from pythae.models import VAE, VQVAE, VAEConfig, VQVAEConfig  # type: ignore[import-not-found]
    from pythae.models.base.base_utils import ModelOutput  # type: ignore[import-not-found]
    from pythae.models.nn import BaseDecoder, BaseEncoder  # type: ignore[import-not-found]
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # type: ignore[import-not-found]

    network = textbook_model(workload)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            BaseEncoder.__init__(self)
            self.layers = network.encoder
            if workload.network != "vq":
                self.mu, self.log_var = network.mu, network.log_var

        def forward(self, x: Tensor) -> Any:
            h = self.layers(x)
            if workload.network == "vq":
                return ModelOutput(embedding=h)
            return ModelOutput(embedding=self.mu(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            BaseDecoder.__init__(self)
            self.layers = network.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z))

    shape, nets = (1, 28, 28), {"encoder": Encoder(), "decoder": Decoder()}
    if workload.network == "vq":
        model = VQVAE(VQVAEConfig(input_dim=shape, latent_dim=64, use_ema=True), **nets)
    else:
        config = VAEConfig(input_dim=shape, latent_dim=20, reconstruction_loss="bce")
        model = VAE(config, **nets)
    data, times = x.float() / 255, []
    if workload.evaluation:
        model.eval().to(DEVICE)
        for _ in range(rounds):
            start = clocks.now()
            with torch.no_grad():
                model.get_nll(data.to(DEVICE), n_samples=DRAWS, batch_size=100)
            times.append(clocks.now() - start)
        return times
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            model,
            train_dataset=BaseDataset(data, torch.ones(len(data))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                learning_rate=1e-3,
                per_device_train_batch_size=workload.batch_size,
                num_epochs=rounds,
            ),
        )
        train_step = trainer.train_step

        def timed(epoch: int) -> Any:
            start = clocks.now()
            result = train_step(epoch)
            times.append(clocks.now() - start)
            return result

        trainer.train_step = timed
        trainer.train()
    return times


SIDES = {"plain": plain, "bare": bare, "floor": floor, "pythae": pythae, "vae": vae}


def run() -> None:
    """Run one side and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--rounds", type=int, default=3)
    args, extra = parser.parse_known_args()
    torch.manual_seed(0)
    options = {"extra": extra} if args.side == "vae" else {}
    times = SIDES[args.side](images(args.images), WORKLOADS[args.workload], args.rounds, **options)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": times, "peak_memory_gb": memory}))


if __name__ == "__main__":
    run()
