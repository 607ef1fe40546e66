"""Checks of the parts of a model, which find mistakes in classes of users before a training."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vae_lightning.distributions.likelihoods import Likelihood
from vae_lightning.distributions.posteriors import GaussianPosterior, Posterior
from vae_lightning.distributions.priors import Prior, StandardNormal
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import ImageModel
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.nets import ImageShape
from vae_lightning.randomness import Noise

_LARGE = 2**20
"""Number of parameters of a likelihood for an image above which it is not tried."""


def check_signature(prior: Prior) -> None:
    """Check that a prior takes what a model passes to it.

    Raises:
        ValueError: If another argument than ``cond_features`` follows the first one.
    """
    parameters = inspect.signature(type(prior)).parameters.values()
    second = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:2]
    if second not in ([], ["cond_features"]):
        raise ValueError(
            f"{type(prior).__name__} takes {second[0]} where a model passes the number of classes: "
            "its first two arguments have to be latent_dim and cond_features, see Prior"
        )


def check_prior(prior: Prior) -> None:
    """Draw from a prior and evaluate its density, once it is attached to its model.

    Raises:
        ValueError: If a method fails or returns another shape than `Prior` says.
    """
    condition = None
    if prior.cond_features:
        condition = functional.one_hot(torch.zeros(2, dtype=torch.int64), prior.cond_features)
        condition = condition.float()
    with torch.no_grad():
        with _named(prior, "sample"):
            z = prior.sample(2, condition, torch.Generator().manual_seed(0))
        _check(prior, "sample", z, (2, prior.latent_dim), "(n, L)")
        if prior.has_density:
            with _named(prior, "log_prob"):
                log_prob = prior.log_prob(z[:, None].expand(-1, 3, -1), condition)
            _check(prior, "log_prob", log_prob, (2, 3), "(B, n)")


def check_posterior(family: Posterior) -> None:
    """Draw from a posterior, at once and in parts.

    Raises:
        ValueError: If a method fails or returns another shape than `LatentDistribution` says, or
            draws are not a function of the noise and their number.
    """
    noise = Noise(torch.arange(2), "check")
    with torch.no_grad():
        with _named(family, "forward"):
            q = family(torch.zeros(2, family.in_features))
        with _named(q, "rsample"):
            draws, last = q.rsample(noise.restart(), 3), q.rsample(noise.restart(), 1, 2)
        _check(q, "rsample", draws.z, (2, 3, family.latent_dim), "draws z (B, n, L)")
        if family.has_density and not family.relaxed_in_training:
            with _named(q, "rsample"):
                log_prob = draws.log_prob
            _check(q, "rsample", log_prob, (2, 3), "draws with log_prob (B, n)")
    if not draws.z[:, 2:].allclose(last.z, atol=1e-4):
        raise ValueError(
            f"{type(q).__name__}.rsample has to take all randomness from noise, and to skip the "
            "numbers of the first draws: draw 2 differs between n 3 and first 2"
        )


def check_likelihood(likelihood: Likelihood, image_shape: ImageShape) -> None:
    """Evaluate the density of black images, and its mean, unless the images are huge.

    Raises:
        ValueError: If a method fails or returns another shape than `Likelihood` says.
    """
    channels, height, width = image_shape
    params = torch.zeros(2, likelihood.n_params * channels, height, width)
    if params[0].numel() > _LARGE:
        return
    with torch.no_grad():
        with _named(likelihood, "log_prob"):
            log_prob = likelihood.log_prob(params[:, None], torch.zeros(2, 1, *image_shape))
        _check(likelihood, "log_prob", log_prob, (2, 1), "one number per image and draw")
        with _named(likelihood, "mean"):
            mean = likelihood.mean(params)
        _check(likelihood, "mean", mean, (2, *image_shape), "images (B, C, H, W)")


def check_closed_form_kl(model: GenerativeModel, purpose: str) -> None:
    """Check that the KL of each latent dimension has a closed form.

    Args:
        model: A model with a prior and a posterior.
        purpose: What the model does with it, as a verb and its object.

    Raises:
        ValueError: If it has not.
    """
    if model.has(Capability.KL_PER_DIMENSION):
        return
    parts = type(model.posterior_family), type(model.prior)
    name, given = type(model).__name__, " and ".join(part.__name__ for part in parts)
    if parts == (GaussianPosterior, StandardNormal):
        raise ValueError(
            f"{name} {purpose}, which has no closed form for the several levels or moved draws of "
            "its other base: combine it with another"
        )
    raise ValueError(
        f"{name} {purpose}, which has no closed form for {given}: choose GaussianPosterior and "
        "StandardNormal"
    )


def check_objective(model: Any, objective: Any, n: int) -> None:
    """Check that an objective has one number per image.

    Raises:
        ValueError: If it has not.
    """
    _check(model, "objective", objective, (n,), "one number per image, (B,)")


@contextlib.contextmanager
def bases_named(model: object) -> Iterator[None]:
    """Name the bases of a model that combines several in errors of programming.

    Raises:
        ValueError: Instead of these errors.
    """
    try:
        yield
    except (AssertionError, AttributeError, IndexError, TypeError) as error:
        bases = [base.__name__ for base in type(model).__bases__ if issubclass(base, ImageModel)]
        if len(bases) < 2:
            raise
        raise ValueError(
            f"{type(model).__name__} combines {' and '.join(bases)}, which do not work together: "
            f"one expects what the other does not have ({type(error).__name__}: {error})"
        ) from error


@contextlib.contextmanager
def _named(part: object, method: str) -> Iterator[None]:
    """Name the method in errors of programming that happen in it."""
    try:
        yield
    except (TypeError, RuntimeError, IndexError, AttributeError) as error:
        message = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"{type(part).__name__}.{method} fails: {type(error).__name__}: {message}"
        ) from error


def _check(part: object, method: str, found: Any, shape: tuple[int, ...], what: str) -> None:
    if isinstance(found, Tensor) and found.shape == shape:
        return
    given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise ValueError(
        f"{type(part).__name__}.{method} has to return {what}, here {shape}, not {given}"
    )
