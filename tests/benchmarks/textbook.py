"""The models as they are written in tutorials: probabilities, and terms summed by hand.

Their networks have the sizes of ours; that is tested.
"""

import math

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import ToTensor

from vae_lightning.nets.residual import ResidualBlock


def encoder_layers(network: str) -> tuple[nn.Module, int]:
    """The encoder without its last layer, and how many features that one sees."""
    if network == "conv":
        convolutions = (nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())
        return nn.Sequential(*convolutions, nn.Flatten()), 3136
    layers = (nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
    return nn.Sequential(*layers), 256


def decoder_layers(network: str) -> nn.Module:
    """From 20 latents to the probabilities of the pixels."""
    if network == "conv":
        return nn.Sequential(
            *(nn.Linear(20, 3136), nn.Unflatten(1, (64, 7, 7))),
            *(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU()),
            *(nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid()),
        )
    return nn.Sequential(
        *(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU()),
        *(nn.Linear(512, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28))),
    )


def vq_encoder_layers() -> nn.Module:
    """From images to a 7x7 map of vectors of size 64."""
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 4, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, 1, 1), ResidualBlock(64, 32), ResidualBlock(64, 32)),
        *(nn.ReLU(), nn.Conv2d(64, 64, 1)),
    )


def vq_decoder_layers() -> nn.Module:
    """From such a map to the probabilities of the pixels."""
    return nn.Sequential(
        *(nn.Conv2d(64, 64, 3, 1, 1), ResidualBlock(64, 32), ResidualBlock(64, 32), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 1, 4, 2, 1), nn.Sigmoid()),
    )


class VAE(nn.Module):
    """The lesson's model, as it is written in tutorials."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.encoder, features = encoder_layers(network)
        self.mu, self.log_var = nn.Linear(features, 20), nn.Linear(features, 20)
        self.decoder = decoder_layers(network)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        mu, log_var = self.mu(h), self.log_var(h)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        reconstruction = F.binary_cross_entropy(self.decoder(z), x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp())
        return (reconstruction + kl) / len(x)

    def log_likelihood(self, x: Tensor, draws: int) -> Tensor:
        """Log p(x) by importance sampling, a draw at a time, (B,)."""
        h = self.encoder(x)
        mu, log_var = self.mu(h), self.log_var(h)
        log_weights = []
        for _ in range(draws):
            epsilon = torch.randn_like(mu)
            z = mu + torch.exp(0.5 * log_var) * epsilon
            p = self.decoder(z)
            log_p_x = -F.binary_cross_entropy(p, x, reduction="none").sum((1, 2, 3))
            log_p_z = -0.5 * z.pow(2).sum(1)
            log_q = -0.5 * (epsilon.pow(2) + log_var).sum(1)
            log_weights.append(log_p_x + log_p_z - log_q)
        return torch.logsumexp(torch.stack(log_weights), 0) - math.log(draws)


class VQVAE(nn.Module):
    """The VQ-VAE with a codebook of moving averages, as it is written in tutorials."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int = 512, features: int = 64, decay: float = 0.99) -> None:
        super().__init__()
        self.encoder, self.decoder = vq_encoder_layers(), vq_decoder_layers()
        self.decay = decay
        codebook = torch.randn(codes, features)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", codebook.clone())

    def forward(self, x: Tensor) -> Tensor:
        z_e = self.encoder(x).permute(0, 2, 3, 1)
        flat = z_e.reshape(-1, z_e.shape[-1])
        distances = (
            flat.pow(2).sum(1, keepdim=True)
            + self.codebook.pow(2).sum(1)
            - 2 * flat @ self.codebook.t()
        )
        one_hot = F.one_hot(distances.argmin(1), len(self.codebook)).float()
        z_q = (one_hot @ self.codebook).view(z_e.shape)
        if self.training:
            with torch.no_grad():
                self.counts.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
                self.sums.mul_(self.decay).add_(one_hot.t() @ flat, alpha=1 - self.decay)
                n = self.counts.sum()
                smooth = (self.counts + 1e-5) / (n + len(self.counts) * 1e-5) * n
                self.codebook.copy_(self.sums / smooth[:, None])
        commitment = F.mse_loss(z_e, z_q.detach(), reduction="sum")
        z_q = z_e + (z_q - z_e).detach()
        reconstruction = self.decoder(z_q.permute(0, 3, 1, 2))
        loss = F.binary_cross_entropy(reconstruction, x, reduction="sum")
        return (loss + 0.25 * commitment) / len(x)


class PillowImages(Dataset):
    """What torchvision's MNIST is: arrays; an item becomes a Pillow image and a number."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.y = x[:, 0], torch.zeros(len(x), dtype=torch.int64)
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.x[i].numpy())
        return self.transform(image), int(self.y[i])
