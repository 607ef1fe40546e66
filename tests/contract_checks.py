"""Checks of what every model, prior and posterior promises; they can be applied to any of them."""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.batch import Batch
from vae_lightning.distributions.poincare import RiemannianNormalPrior, WrappedNormalPrior
from vae_lightning.distributions.posteriors import REAL, Latents, Posterior
from vae_lightning.distributions.priors import Prior
from vae_lightning.distributions.product import ProductPrior
from vae_lightning.distributions.von_mises_fisher import SPHERE
from vae_lightning.functional import standard_normal_log_prob
from vae_lightning.models.base import BaseVAE, Terms
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.code_prior import CodePrior
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.models.vq_vae import VQVAE
from vae_lightning.randomness import Noise

IMAGE_SHAPE = (1, 8, 8)
NUM_CLASSES = 4


# Finding and building


def subclasses(cls: type) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def implementations(base: type) -> list[Any]:
    """Return the classes of this project that implement a base class."""
    found = dict.fromkeys(subclasses(base))
    return [
        cls
        for cls in found
        if not inspect.isabstract(cls) and cls.__module__.startswith("vae_lightning.")
    ]


SMALL: dict[str, Any] = {
    "critic_hidden": (16, 16),
    "hidden": (8,),
    "components": 7,
    "codebook_size": 8,
    "exemplars": 12,
    "subset": 6,
    "transforms": 2,
    "free_bits": 0.0,
}
"""Options that make a part smaller; with no free bits, every KL has a gradient."""

DISCRETE = {"num_categories": 2}
"""Options that make categorical parts fit a latent of size 4."""


def small(cls: Callable[..., Any], **kwargs: Any) -> Any:
    """Return a class with the options in `SMALL` and ``kwargs``, those of them that it has."""
    accepted = inspect.signature(cls).parameters
    options = {k: v for k, v in kwargs.items() if k in accepted}
    # Somebody's own class may use one of these names for something else.
    options |= {
        k: v for k, v in SMALL.items() if k in accepted and isinstance(accepted[k].default, type(v))
    }
    return functools.partial(cls, **options) if options else cls


def build(variant: type[GenerativeModel], **kwargs: Any) -> Any:
    """Build a small model for the images of the tests."""
    arguments = {"image_shape": IMAGE_SHAPE, "num_classes": NUM_CLASSES, **kwargs}
    if issubclass(variant, CodePrior):
        sizes = {name: arguments[name] for name in ("image_shape", "num_classes")}
        arguments = {"autoencoder": build(VQVAE, **sizes), **arguments}
    return small(variant)(**arguments)


class FewImages:
    """Training images, as `TrainingImages` describes them.

    Args:
        x: Images, (N, C, H, W).
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def mean_image(self) -> Tensor:
        return self.x.mean(0)

    def random_images(self, n: int, seed: int) -> Tensor:
        return self.x[self.random_indices(n, seed)]

    def random_indices(self, n: int, seed: int) -> Tensor:
        chosen = torch.Generator().manual_seed(seed)
        return torch.randint(len(self.x), (n,), generator=chosen)


# Using a model


def labels_of(model: BaseVAE, batch: Batch) -> Labels:
    return model.used_labels(batch.y)


def terms_of(model: BaseVAE, batch: Batch, *keys: int | str) -> Terms:
    condition = model.encode_labels(labels_of(model, batch), len(batch.x))
    return model.terms(batch.x, condition, Noise(batch.indices, *keys))


def depends_on_batch(terms: Terms, name: str) -> bool:
    """Return whether a term is declared to depend on the other images of the batch."""
    return name in terms.batch_dependent or terms.as_dict()[name].ndim == 0


def objective_depends_on_batch(terms: Terms) -> bool:
    return any(depends_on_batch(terms, name) for name in terms.as_dict())


def critic_parameters(model: BaseVAE) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name.startswith("critic.")}


def train(model: BaseVAE, batch: Batch, steps: int, lr: float = 1e-2) -> None:
    """Train on one batch, without Lightning; a critic stays as it is."""
    critic = critic_parameters(model)
    parameters = [
        p for name, p in model.named_parameters() if p.requires_grad and name not in critic
    ]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model.objective(terms_of(model, batch, "train", step)).mean().backward()
        optimizer.step()


# The checks


def check_terms(model: BaseVAE, batch: Batch) -> None:
    """Check shapes and types: one value per image, or one for the whole batch."""
    terms = terms_of(model, batch)
    n = len(batch.x)
    named = terms.as_dict()
    assert named.keys() >= {"reconstruction"}
    assert terms.reconstruction.shape == (n,)
    assert terms.batch_dependent <= named.keys(), "batch_dependent names no term"
    for name, value in {"objective": model.objective(terms), **named}.items():
        assert value.shape in ((n,), ()), name
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name
    assert model.objective(terms).shape == (n,)
    for name in named:
        assert isinstance(terms.unit(name), str)
        assert terms.unit(name), name


def check_batch_independence(model: BaseVAE, batch: Batch) -> None:
    """Check that an image's terms are the same in another batch, unless declared otherwise."""
    model.eval()
    whole = terms_of(model, batch)
    part = terms_of(model, Batch(*(value[:5] for value in batch)))
    for name, value in part.as_dict().items():
        if not depends_on_batch(part, name):
            torch.testing.assert_close(value, whole.as_dict()[name][:5], rtol=1e-4, atol=1e-4)


def check_gradients(model: BaseVAE, batch: Batch, exempt: tuple[str, ...] = ()) -> None:
    """Check that every parameter learns, the critic's from the critic's objective alone."""
    model.train()
    critic = critic_parameters(model)
    assert (model.critic is not None) == bool(critic)

    def gradients(loss: Tensor) -> dict[str, Tensor | None]:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(
            loss.mean(), list(named.values()), retain_graph=True, allow_unused=True
        )
        return dict(zip(named, found, strict=True))

    def moves(gradient: Tensor | None) -> bool:
        return gradient is not None and bool(gradient.abs().sum() > 0)

    terms = terms_of(model, batch)
    for name, gradient in gradients(model.objective(terms)).items():
        if not name.startswith(exempt or ("\0",)):
            expected = "no" if name in critic else "a"
            assert moves(gradient) == (name not in critic), f"{name}: {expected} gradient expected"
    if critic:
        for name, gradient in gradients(model.critic_objective(terms)).items():
            assert moves(gradient) == (name in critic), f"{name}: of the critic's objective"


def check_bound(model: BaseVAE, batch: Batch, seeds: int = 32, num_samples: int = 64) -> None:
    """Check that the importance-weighted value is not above the negative ELBO.

    The two use the prior and the posterior in different places. -log p(x) by K importance samples
    is at most the negative ELBO in expectation, so its mean may exceed that of the latter by 3
    standard errors of the paired difference only.

    Args:
        model: A model with a density and a term ``negative_elbo``.
        batch: Images.
        seeds: Number of noise seeds over which both are averaged.
        num_samples: Importance samples K.
    """
    assert model.has(Capability.DENSITY)
    model.eval()
    condition = model.encode_labels(labels_of(model, batch), len(batch.x))
    differences = []
    with torch.no_grad():
        for seed in range(seeds):
            elbo = terms_of(model, batch, "elbo", seed).as_dict()["negative_elbo"].double()
            noise = Noise(batch.indices, "importance", seed)
            log_p = model.log_marginal(batch.x, condition, noise, num_samples, rows=4096).double()
            differences.append((-log_p - elbo).mean())
    excess = torch.stack(differences)
    error = (excess.std() / math.sqrt(seeds)).item()
    assert excess.mean().item() <= 3 * error + 1e-4, (
        f"-log p(x) by {num_samples} importance samples is {excess.mean():.3f} above the negative "
        f"ELBO (standard error {error:.3f}): they do not use the same prior and posterior"
    )


def check_real_sampler(
    sample: Callable[[int], Tensor], log_prob: Callable[[Tensor], Tensor], n: int = 40_000
) -> None:
    """Check that samples of real vectors follow a log-density, and that it is normalized.

    Draws from a broad Gaussian are weighted with density over proposal density. The mean weight is
    the integral of the density; weighted first and second moments, and the weighted mean of the
    log-density, are compared with those of the samples, each to 4 standard errors.

    Args:
        sample: Draws, n -> (n, D); D of 2 to 4.
        log_prob: Log-density in nats, (n, D) -> (n,).
        n: Number of draws.
    """
    with torch.no_grad():
        z = sample(n).double()
        mean, scale = z.mean(0), 1.6 * z.std(0) + 0.3
        generator = torch.Generator().manual_seed(1)
        epsilon = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        proposed = mean + scale * epsilon
        log_q = standard_normal_log_prob(epsilon) - scale.log().sum()
    check_weighted(z, proposed, log_q, log_prob)


def check_sphere_sampler(
    sample: Callable[[int], Tensor], log_prob: Callable[[Tensor], Tensor], n: int = 40_000
) -> None:
    """Check samples of unit vectors as `check_real_sampler` does, with uniform proposals.

    The density is by the area of the sphere.
    """
    with torch.no_grad():
        z = sample(n).double()
        size = z.shape[1]
        torch.testing.assert_close(z.norm(dim=1), torch.ones(n).double(), rtol=0, atol=1e-5)
        generator = torch.Generator().manual_seed(1)
        proposed = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        proposed /= proposed.norm(dim=1, keepdim=True)
        log_area = math.log(2) + size / 2 * math.log(math.pi) - math.lgamma(size / 2)
    check_weighted(z, proposed, torch.full((n,), -log_area).double(), log_prob)


def check_ball_sampler(
    sample: Callable[[int], Tensor],
    log_prob: Callable[[Tensor], Tensor],
    curvature: float,
    n: int = 40_000,
) -> None:
    """Check samples of a Poincaré ball as `check_real_sampler` does.

    The density is by the volume of hyperbolic space. Proposals are Gaussian in the coordinates of
    the tangent space at 0.
    """
    root = math.sqrt(curvature)
    with torch.no_grad():
        z = sample(n).double()
        assert (root * z.norm(dim=1) < 1).all()
        length = z.norm(dim=1, keepdim=True)
        tangent = 2 / root * (root * length).atanh() * z / length
        mean, scale = tangent.mean(0), 1.6 * tangent.std(0) + 0.3
        generator = torch.Generator().manual_seed(1)
        epsilon = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        v = mean + scale * epsilon
        distance = v.norm(dim=1, keepdim=True)
        proposed = (root * distance / 2).tanh() / root * v / distance
        stretch = (root * distance).sinh() / (root * distance)
        log_volume = (z.shape[1] - 1) * stretch.log()[:, 0]
        log_q = standard_normal_log_prob(epsilon) - scale.log().sum() - log_volume
    check_weighted(z, proposed, log_q, log_prob)


def check_weighted(
    z: Tensor, proposed: Tensor, log_q: Tensor, log_prob: Callable[[Tensor], Tensor]
) -> None:
    """Compare samples (n, D) with proposals (n, D) that are weighted with density over proposal.

    Args:
        z: Samples, float64.
        proposed: As many proposals, float64.
        log_q: Their log-density, (n,).
        log_prob: Log-density that the samples should follow, (n, D) -> (n,).
    """
    n, mean = len(z), z.mean(0)
    with torch.no_grad():
        log_p = log_prob(proposed.float()).double()
        weights = (log_p - log_q).exp()
        effective = weights.sum().square() / weights.square().sum()
        assert effective > n / 100, "the proposal does not cover the density: no test is possible"

        def close(found: Tensor, expected: Tensor, what: str) -> None:
            """Compare means over rows, (n, M), to 4 standard errors."""
            error = ((found.var(0) + expected.var(0)) / n).sqrt()
            difference = (found.mean(0) - expected.mean(0)).abs()
            assert (difference <= 4 * error + 1e-4).all(), (
                f"{what}: {found.mean(0).tolist()} by the density, but "
                f"{expected.mean(0).tolist()} of the samples"
            )

        w = weights[:, None]
        close(w, torch.ones_like(w), "integral of the density")
        close(w * proposed, z, "means")
        close(w * _products(proposed - mean), _products(z - mean), "second moments")
        close(w * log_p[:, None], log_prob(z.float()).double()[:, None], "negative entropy")


def _products(z: Tensor) -> Tensor:
    """Return the products of all pairs of dimensions, (n, D) -> (n, D (D + 1) / 2)."""
    rows, columns = torch.triu_indices(z.shape[1], z.shape[1])
    return z[:, rows] * z[:, columns]


def check_discrete_sampler(
    sample: Callable[[int], Tensor],
    log_prob: Callable[[Tensor], Tensor],
    outcomes: Tensor,
    n: int = 20_000,
) -> None:
    """Check that samples follow log-probabilities, which sum to one.

    Args:
        sample: Draws, n -> (n, D).
        log_prob: Log-probability in nats, (n, D) -> (n,).
        outcomes: All possible values, (M, D).
        n: Number of draws.
    """
    with torch.no_grad():
        p = log_prob(outcomes).double().exp()
        assert abs(p.sum().item() - 1) < 1e-5
        equal = (sample(n)[:, None] == outcomes).all(2).double()
        assert equal.sum(1).eq(1).all(), "a sample is none of the possible values"
        error = (p * (1 - p) / n).sqrt()
        assert ((equal.mean(0) - p).abs() <= 4 * error).all()


def one_hot_outcomes(size: int, num_categories: int) -> Tensor:
    """Return all vectors of ``size / num_categories`` one-hot vectors."""
    codes = torch.arange(num_categories)
    combinations = torch.cartesian_prod(*[codes] * (size // num_categories))
    return nn.functional.one_hot(combinations, num_categories).float().flatten(1)


def check_sampling(model: BaseVAE, label: int | None = None) -> None:
    """Check that the latents that a model samples follow its prior, and images these latents.

    Args:
        model: A model with few latent dimensions that can sample and has a prior density.
        label: Class of all samples of a conditional model.
    """
    assert isinstance(model, LatentVariableModel)

    def condition(n: int) -> Tensor | None:
        return model.encode_labels(label, n)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    model.eval()
    with model.inference():
        latents = model.sample_latents(16, condition(16), seeded())
    assert model.sample(16, label, seeded()).equal(model.decode(latents, label))
    levels = _levels(latents)
    sizes = [level.shape[1] for level in levels]

    def sample(n: int) -> Tensor:
        with model.inference():
            return torch.cat(_levels(model.sample_latents(n, condition(n), seeded())), 1)

    def log_prob(z: Tensor) -> Tensor:
        parts = tuple(part[:, None] for part in z.split(sizes, 1))
        given: Latents = parts if len(levels) > 1 else parts[0]
        with model.inference():
            return model.log_prior(given, condition(len(z)))[:, 0]

    check_support(model.prior, sample, log_prob)


def check_support(
    prior: Prior, sample: Callable[[int], Tensor], log_prob: Callable[[Tensor], Tensor]
) -> None:
    """Check a sampler against a density on the support of a prior."""
    if prior.support == REAL:
        check_real_sampler(sample, log_prob)
    elif prior.support == SPHERE:
        check_sphere_sampler(sample, log_prob)
    elif isinstance(prior, WrappedNormalPrior | RiemannianNormalPrior):
        check_ball_sampler(sample, log_prob, prior.ball.curvature)
    elif isinstance(prior, ProductPrior):
        _check_parts(prior, sample, log_prob)
    elif prior.support.startswith("one-hot"):
        assert hasattr(prior, "num_categories")
        outcomes = one_hot_outcomes(prior.latent_dim, prior.num_categories)
        check_discrete_sampler(sample, log_prob, outcomes)
    else:
        raise NotImplementedError(f"add a check for priors over {prior.support}")


def _check_parts(
    prior: ProductPrior, sample: Callable[[int], Tensor], log_prob: Callable[[Tensor], Tensor]
) -> None:
    """Check each part by itself, and that the density is the product."""
    z = sample(100)
    ends = list(itertools.accumulate(prior.sizes))
    total = torch.zeros(100)
    for part, end in zip(prior.parts, ends, strict=True):
        here = slice(end - part.latent_dim, end)

        def of_part(x: Tensor, part: Prior = part) -> Tensor:
            return part.log_prob(x[:, None])[:, 0]

        check_support(part, lambda n, here=here: sample(n)[:, here], of_part)
        total = total + of_part(z[:, here])
    torch.testing.assert_close(log_prob(z), total)


def _levels(latents: Latents) -> tuple[Tensor, ...]:
    return (latents,) if isinstance(latents, Tensor) else latents


def fits(prior: type[Prior], posterior: type[Posterior], latent_dim: int = 4) -> bool:
    """Return whether a prior and a posterior have the same support."""
    family, distribution = (small(cls, **DISCRETE)(latent_dim) for cls in (posterior, prior))
    same: bool = family.support == distribution.support
    return same
