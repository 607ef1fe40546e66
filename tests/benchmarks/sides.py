"""The sides of the comparison: each trains the same network on the same images, its own way.

Run in a process of its own by ``speed.py``: ``python sides.py SIDE WORKLOAD --images N --epochs E``
prints one line of JSON.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # for --trainer.callbacks+=sides.EpochTimes

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Workload(NamedTuple):
    """What is trained: options of ``vae fit``, and the same for a loop written by hand."""

    options: list[str]
    batch_size: int
    network: str


MLP = ["--model.encoder=MLPEncoder", "--model.decoder=MLPDecoder"]
WORKLOADS = {
    "conv": Workload(["--model=VAE"], 128, "conv"),
    "mlp-20": Workload(["--model=VAE", *MLP], 20, "mlp"),
    "mlp-100": Workload(["--model=VAE", *MLP], 100, "mlp"),
    "vq": Workload(["--model=VQVAE"], 128, "vq"),
}


def images(n: int) -> Tensor:
    """The first ``n`` training images of MNIST, or of the bundled digits: uint8, (n, 1, 28, 28)."""
    from vae_lightning import MNIST, Digits

    data = MNIST() if os.environ.get("VAE_DATA_ROOT") else Digits()
    data.prepare_data()
    data.setup("fit")
    train: Any = data.datasets["train"]
    return train.images.x[:n]


class TextbookVAE(nn.Module):
    """The lesson's model, as it is written in tutorials: probabilities, terms summed by hand."""

    def __init__(self, network: str) -> None:
        super().__init__()
        if network == "conv":
            self.encoder = nn.Sequential(
                *(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
                nn.Flatten(),
            )
            self.mu, self.log_var = nn.Linear(3136, 20), nn.Linear(3136, 20)
            self.decoder = nn.Sequential(
                *(nn.Linear(20, 3136), nn.Unflatten(1, (64, 7, 7))),
                *(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU()),
                *(nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid()),
            )
        else:
            self.encoder = nn.Sequential(
                nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()
            )
            self.mu, self.log_var = nn.Linear(256, 20), nn.Linear(256, 20)
            self.decoder = nn.Sequential(
                *(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU()),
                *(nn.Linear(512, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28))),
            )

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        reconstruction = F.binary_cross_entropy(self.decoder(z), x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
        return (reconstruction + kl) / len(x)


class PillowImages(Dataset):
    """What torchvision's MNIST is: an array, of which each item becomes a Pillow image."""

    def __init__(self, x: Tensor) -> None:
        self.x = x[:, 0]
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[i].numpy())), 0


def our_model(workload: Workload) -> Any:
    """The model that ``vae fit`` trains, without Lightning."""
    import vae_lightning
    from vae_lightning.nets import MLPDecoder, MLPEncoder

    if workload.network == "vq":
        return vae_lightning.VQVAE()
    pair = {"encoder": MLPEncoder, "decoder": MLPDecoder}
    return vae_lightning.VAE(**(pair if workload.network == "mlp" else {}))


def plain(x: Tensor, workload: Workload, epochs: int) -> list[float]:
    """The loop that everybody writes: DataLoader, ToTensor, Adam, and loss.item() at every step."""
    model = TextbookVAE(workload.network).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(PillowImages(x), batch_size=workload.batch_size, shuffle=True)
    times = []
    for _ in range(epochs):
        start = time.perf_counter()
        total = 0.0
        for batch, _labels in loader:
            loss = model(batch.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        times.append(time.perf_counter() - start)
    return times


def floor(x: Tensor, workload: Workload, epochs: int, compiled: bool = True) -> list[float]:
    """No framework: images in memory, torch's own noise, fused Adam, the network compiled."""
    model = our_model(workload).to(DEVICE)
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True
    )
    if compiled:
        model.encoder.compile()
        model.decoder.compile()

    def loss_of(batch: Tensor) -> Tensor:
        if workload.network == "vq":
            return model.objective(model.terms(batch, None, None)).mean()  # type: ignore[arg-type]
        q = model.posterior(batch)
        epsilon = torch.randn_like(q.mu)
        params = model.decoder(torch.addcmul(q.mu, (0.5 * q.log_var).exp(), epsilon), None)
        return (q.kl().sum(1) - model.likelihood.log_prob(params, batch)).mean()

    x, times = x.to(DEVICE), []
    for _ in range(epochs):
        start = time.perf_counter()
        for index in torch.randperm(len(x), device=DEVICE).split(workload.batch_size):
            loss = loss_of(x[index].float() / 255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def bare(x: Tensor, workload: Workload, epochs: int) -> list[float]:
    """As `floor`, not compiled."""
    return floor(x, workload, epochs, compiled=False)


class EpochTimes(pl.Callback):
    """Seconds of each epoch, without validation."""

    seconds: ClassVar[list[float]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        sys.modules["sides"].EpochTimes.seconds.append(time.perf_counter() - self.start)  # type: ignore[attr-defined]


def vae_fit(n: int, workload: Workload, epochs: int, extra: list[str]) -> list[float]:
    """``vae fit`` through its command line, pictures, logs and checkpoints included."""
    import tempfile

    import sides

    from vae_lightning.__main__ import main

    name = "MNIST" if os.environ.get("VAE_DATA_ROOT") else "Digits"
    # The rest of the training images is the validation set, which is not timed.
    data = [f"--data={name}", f"--data.val_size={60_000 - n}"]
    with tempfile.TemporaryDirectory() as folder:
        main(
            [
                *("fit", *workload.options, *data, f"--data.batch_size={workload.batch_size}"),
                *(f"--trainer.max_epochs={epochs}", f"--output_dir={folder}"),
                "--trainer.check_val_every_n_epoch=1000",
                "--trainer.num_sanity_val_steps=0",
                "--trainer.enable_progress_bar=false",
                "--trainer.callbacks+=sides.EpochTimes",
                *extra,
            ]
        )
    return sides.EpochTimes.seconds


def pythae(x: Tensor, workload: Workload, epochs: int) -> list[float]:
    """pythae's trainer, where it is installed, with its default network for MNIST-sized images."""
    import tempfile

    from pythae.data.datasets import BaseDataset  # type: ignore[import-not-found]
    from pythae.models import VAE, VQVAE, VAEConfig, VQVAEConfig  # type: ignore[import-not-found]
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            learning_rate=1e-3,
            per_device_train_batch_size=workload.batch_size,
            num_epochs=epochs,
        )
        if workload.network == "vq":
            model = VQVAE(VQVAEConfig(input_dim=(1, 28, 28), latent_dim=64))
        else:
            model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=20))
        data = np.asarray(x, dtype=np.float32) / 255
        trainer = BaseTrainer(
            model,
            train_dataset=BaseDataset(torch.from_numpy(data), torch.ones(len(data))),
            training_config=config,
        )
        times, train_step = [], trainer.train_step

        def timed(epoch: int) -> Any:
            start = time.perf_counter()
            result = train_step(epoch)
            times.append(time.perf_counter() - start)
            return result

        trainer.train_step = timed
        trainer.train()
    return times


def main() -> None:
    """Run one side and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["plain", "floor", "bare", "vae-fit", "pythae"])
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--epochs", type=int, default=3)
    args, extra = parser.parse_known_args()
    workload = WORKLOADS[args.workload]
    torch.manual_seed(0)
    if args.side == "vae-fit":
        times = vae_fit(args.images, workload, args.epochs, extra)
    else:
        sides = {"plain": plain, "floor": floor, "bare": bare, "pythae": pythae}
        times = sides[args.side](images(args.images), workload, args.epochs)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"epochs": times, "peak_memory_gb": memory}))


if __name__ == "__main__":
    main()
