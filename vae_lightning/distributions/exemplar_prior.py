"""Exemplar VAE (Norouzi et al., 2020), https://arxiv.org/abs/2004.04795."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning import randomness
from vae_lightning.distributions.posteriors import LatentDistribution
from vae_lightning.distributions.priors import Prior, TrainingImages
from vae_lightning.functional import without_autocast
from vae_lightning.schedules import SeesBatches

_ENCODED = 1000
"""Number of exemplars that are encoded at once."""
_CELLS = 2**18
"""Number of pairs of a latent and an exemplar at once on a CPU, so that they fit in its caches."""
_CELLS_ELSEWHERE = 2**25
_PROBED = 4
"""Number of exemplars that are encoded again to see whether the encoder has changed."""


class ExemplarPrior(Prior, SeesBatches):
    r"""Mixture of Gaussians around the encoded training images, the exemplars.

    .. math:: p(z) = \frac{1}{N} \sum_{n=1}^N N(z; \mu(x_n), \sigma^2 I)

    The means are those of the encoder; one variance is learned for all. In training, an image must
    not explain itself: the mixture for an image leaves out the exemplar that it is itself. A
    training step sees a random ``subset`` of the exemplars, which is encoded with gradients; the
    paper, too, trains on random subsets, to generalize better. Evaluation and sampling see all
    exemplars.

    Use it for better likelihoods and samples, and to trace each sample to the training image that
    it comes from. Its means are posterior means, so the latent space stays one of the encoder. For
    models that are not conditional; with a hierarchy, the means are those of the top level.

    The exemplars are part of the model and of its checkpoints, so that no data are needed to use
    it: one byte per value of an image in [0, 1], four bytes for unbounded data. 5000 images of
    28 x 28 pixels take 4 MB, 50,000 take 39 MB. With N exemplars, a density takes N distances, so
    ``vae test`` with many importance samples is slow when N is large. With dynamic
    binarization, each exemplar is stored as one fixed binarization.

    Args:
        latent_dim: See `Prior`.
        cond_features: Must be 0.
        exemplars: Number of training images N that are exemplars.
        subset: Number of exemplars that a training step sees, at most all.
        seed: Seed of the choice of the exemplars, and of the subsets.

    Raises:
        ValueError: If a number is too small, or the model does not fit.

    References:
        Norouzi et al. (2020), Exemplar VAE: linking generative models, nearest neighbor retrieval,
        and data augmentation, https://arxiv.org/abs/2004.04795

    Example:
        >>> from vae_lightning import VAE
        >>> from functools import partial
        >>> prior = partial(ExemplarPrior, exemplars=10, subset=5)
        >>> vae = VAE(image_shape=(1, 8, 8), latent_dim=2, prior=prior)
        >>> vae.prior.images(torch.arange(3)).shape
        torch.Size([3, 1, 8, 8])
    """

    held: Tensor
    indices: Tensor

    def __init__(
        self,
        latent_dim: int,
        cond_features: int = 0,
        exemplars: int = 5000,
        subset: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(latent_dim, cond_features)
        for name, value in {"exemplars": exemplars, "subset": subset}.items():
            if value < 2:
                raise ValueError(f"ExemplarPrior: {name} must be at least 2, got {value}")
        if cond_features:
            raise ValueError(
                "ExemplarPrior does not know the classes of its exemplars: choose another prior "
                "for a conditional model"
            )
        self.exemplars = exemplars
        self.subset = min(subset, exemplars)
        self.seed = seed
        self.log_var = nn.Parameter(torch.zeros(()))
        self._cached: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(_forget)

    def attach(
        self,
        posterior: Callable[[Tensor], LatentDistribution],
        image_shape: tuple[int, int, int],
    ) -> None:
        """See `Prior.attach`; the exemplars are black until `init_from_data`."""
        self._posterior = posterior
        kind = torch.uint8 if self.bounded else torch.float32
        self.register_buffer("held", torch.zeros(self.exemplars, *image_shape, dtype=kind))
        self.register_buffer("indices", torch.full((self.exemplars,), -1))
        with torch.no_grad():
            found = tuple(self.encode(self.images(torch.arange(1))).shape)
        if found != (1, self.latent_dim):
            raise ValueError(
                f"ExemplarPrior needs a posterior with means of size {self.latent_dim}, not "
                f"{found[1:]}: choose another prior"
            )

    def init_from_data(self, images: TrainingImages) -> None:
        """See `Prior.init_from_data`; chooses the exemplars.

        Raises:
            ValueError: If it is not known which training images they are.
        """
        indices = images.random_indices(self.exemplars, self.seed)
        if indices is None:
            raise ValueError(
                "ExemplarPrior has to tell which image of a batch is which exemplar, but this data "
                "module does not say which images it chooses: use one of this package, or VampPrior"
            )
        x = images.random_images(self.exemplars, self.seed)
        self.held.copy_((255 * x).round() if self.bounded else x)
        self.indices.copy_(indices)
        self._cached = None

    def images(self, chosen: Tensor) -> Tensor:
        """Return some of the exemplars, float32, (M, C, H, W).

        Args:
            chosen: Their numbers, (M,).
        """
        held = self.held[chosen.to(self.held.device)].float()
        return held / 255 if self.bounded else held

    def encode(self, x: Tensor) -> Tensor:
        """Return the means of the components at images, (M, L), with gradients.

        Args:
            x: Images, (M, C, H, W).
        """
        mean: Any = self._posterior(x).mean
        top: Tensor = mean if isinstance(mean, Tensor) else mean[-1]
        return top.float()

    def means(self) -> Tensor:
        """Return the means of all components, (N, L), without gradients.

        They are kept until the encoder changes.
        """
        with torch.no_grad():
            probe = self.encode(self.images(torch.arange(min(_PROBED, self.exemplars))))
            if self._cached is None or not _same(self._cached[0], probe):
                self._cached = probe, self._encode_all(torch.arange(self.exemplars))
        return self._cached[1]

    def log_prob(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Prior.log_prob`; of a random subset of the exemplars in training mode.

        While a batch is trained on, the exemplar that an image is itself is left out.
        """
        if not self.training:
            return exemplar_log_prob(z, self.means(), self.log_var)
        chosen = torch.arange(self.exemplars)
        if self.subset < self.exemplars:
            chosen = randomness.choose(
                self.exemplars, self.subset, self.seed, "exemplars", self.step
            )
        left_out = None
        if self.batch_indices is not None and len(self.batch_indices) == len(z):
            indices = self.indices[chosen.to(self.indices.device)]
            left_out = self.batch_indices.to(z.device)[:, None] == indices
        return exemplar_log_prob(z, self.encode(self.images(chosen)), self.log_var, left_out)

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Prior.sample`."""
        chosen = torch.randint(self.exemplars, (n,), generator=generator)
        epsilon = randomness.standard_normal(n, self.latent_dim, generator)
        encoded, of_sample = chosen.unique(return_inverse=True)
        means = self._encode_all(encoded)
        deviation = (0.5 * self.log_var.float()).exp()
        return means[of_sample.to(means.device)] + deviation * epsilon.to(means.device)

    def _encode_all(self, chosen: Tensor) -> Tensor:
        return torch.cat([self.encode(self.images(part)) for part in chosen.split(_ENCODED)])


def exemplar_log_prob(
    z: Tensor, means: Tensor, log_var: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """Return the log-density of a mixture of Gaussians with equal weights and one variance.

    The squared distances are expanded to a matrix product, in float64 where the device has it.

    Args:
        z: Latents, (B, n, L).
        means: Means, (M, L).
        log_var: Logarithm of the variance, ().
        left_out: Which components to exclude for each row of latents, (B, M). If that would be
            every component of a row, none is excluded.

    Returns:
        Nats, (B, n), float32.

    Example:
        >>> means = torch.tensor([[-1.0], [1.0]])
        >>> exemplar_log_prob(torch.zeros(1, 1, 1), means, torch.zeros(()))
        tensor([[-1.4189]])
    """
    dtype = torch.float32 if z.is_mps else torch.float64
    z, means, log_var = (x.to(dtype) for x in (z, means, log_var))
    center = means.detach().mean(0)
    z, means = z - center, means - center
    precision = (-log_var).exp()
    constant = 0.5 * z.shape[2] * (log_var + math.log(2 * math.pi))
    log_weights = means.new_full((len(z), 1), -math.log(len(means)))
    if left_out is not None:
        left_out = left_out & ~left_out.all(1, keepdim=True)
        log_weights = -(~left_out).sum(1, keepdim=True).to(dtype).log()
    with without_autocast(z):
        log_sum = _log_sum(z, precision * means, -0.5 * precision * means.square().sum(1), left_out)
    log_p = log_sum - 0.5 * precision * z.square().sum(2) - constant + log_weights
    return log_p.float()


def _log_sum(z: Tensor, means: Tensor, bias: Tensor, left_out: Tensor | None) -> Tensor:
    """Return log sum_m exp(z m + bias_m), (B, n), over the components that are not left out."""
    if left_out is not None:  # in training, with few draws and few components
        scores = torch.baddbmm(bias, z, means.t().expand(len(z), -1, -1))
        return scores.masked_fill(left_out[:, None], -math.inf).logsumexp(2)
    cells = _CELLS if z.device.type == "cpu" else _CELLS_ELSEWHERE
    parts = z.flatten(0, 1).split(max(1, cells // len(means)))
    return torch.cat([torch.addmm(bias, part, means.t()).logsumexp(1) for part in parts]).view(
        z.shape[:2]
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and a.equal(b)


def _forget(prior: Any, incompatible_keys: Any) -> None:
    """Forget the encoded exemplars: others were loaded."""
    prior._cached = None
