"""A linear model with Gaussian noise, of which everything is known in closed form."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vae_lightning.distributions.likelihoods import Gaussian
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.nets import MLPDecoder, MLPEncoder

SIGMA, PIXELS, LATENTS = 0.5, 4, 2


class LinearDecoder(nn.Module):
    """The mean of p(x|z); the columns of the weight are orthogonal."""

    def __init__(self) -> None:
        super().__init__()
        scales = torch.tensor([1.5, 0.7])
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(PIXELS, LATENTS)).Q * scales)
        self.offset = nn.Parameter(torch.rand(PIXELS))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return (z @ self.weight.T + self.offset).view(-1, 1, 2, 2)


class GivenFeatures(nn.Module):
    """An encoder that returns mu and log_var of each image, whose gradients can be looked at."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = nn.Parameter(features.float())

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.features


def linear(cls: type[LatentVariableModel], **kwargs: Any) -> Any:
    """Return a model with p(z) = N(0, I), p(x|z) = N(W z + b, sigma^2 I)."""
    nets = {
        "encoder": functools.partial(MLPEncoder, hidden=(3,), activation="tanh"),
        "decoder": functools.partial(MLPDecoder, hidden=(3,), activation="tanh"),
    }
    likelihood = functools.partial(Gaussian, sigma=SIGMA)
    options = {"image_shape": (1, 2, 2), "latent_dim": LATENTS, "likelihood": likelihood, **nets}
    model = cls(**{**options, **kwargs})
    torch.manual_seed(3)
    model.decoder = LinearDecoder()
    return model


def marginal(model: LatentVariableModel) -> MultivariateNormal:
    """Return p(x), in float64."""
    weight, offset = model.decoder.weight.detach().double(), model.decoder.offset.detach().double()
    noise = SIGMA**2 * torch.eye(PIXELS, dtype=torch.float64)
    return MultivariateNormal(offset, weight @ weight.T + noise)


def images(model: LatentVariableModel, n: int) -> tuple[Tensor, Tensor]:
    """Draw images, (n, 1, 2, 2), and return their exact log p(x), float64, (n,)."""
    p = marginal(model)
    x = p.sample((n,))
    return x.float().view(n, 1, 2, 2), p.log_prob(x.float().double())


def exact_features(model: LatentVariableModel, x: Tensor) -> Tensor:
    """Return mu and log_var of p(z|x), (n, 4), which is diagonal."""
    weight, offset = model.decoder.weight.detach().double(), model.decoder.offset.detach().double()
    precision = 1 + weight.square().sum(0) / SIGMA**2
    mu = (x.flatten(1).double() - offset) @ weight / SIGMA**2 / precision
    return torch.cat([mu, -precision.log().expand_as(mu)], 1)
