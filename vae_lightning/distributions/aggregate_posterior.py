"""The aggregate posterior: the mixture of the posteriors of many images."""

import copy
import math

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import LatentDistribution, Posterior
from vae_lightning.randomness import Noise

_ROWS = 64
"""Number of latents that are evaluated at once."""
_CELLS = 2**17
"""Number of values at once on a CPU, so that they fit in its caches."""
_CELLS_ELSEWHERE = 2**24


class AggregatePosterior:
    r"""The exact aggregate posterior of N images.

    .. math:: q(z) = \frac{1}{N} \sum_{n=1}^N q(z|x_n), \quad
        q(z_j) = \frac{1}{N} \sum_{n=1}^N q(z_j|x_n)

    Everything is computed in float64, without approximations, in blocks of bounded size; the time
    is proportional to the number of images times the number of latents.

    Args:
        family: Family of the posteriors; a copy in float64 is used.
        features: What the encoder returned for the images, (N, F), on a device that has float64.

    Raises:
        ValueError: If there are no images, or the posterior can evaluate its density only at its
            own draws.

    References:
        Hoffman and Johnson (2016), ELBO surgery: yet another way to carve up the variational
        evidence lower bound, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf

    Example:
        >>> from vae_lightning.distributions.posteriors import GaussianPosterior
        >>> q = AggregatePosterior(GaussianPosterior(2), torch.zeros(5, 4))  # five times N(0, I)
        >>> log_prob, marginals = q.log_prob(torch.zeros(1, 2))
        >>> log_prob.exp() * 2 * math.pi
        tensor([1.], dtype=torch.float64)
    """

    def __init__(self, family: Posterior, features: Tensor) -> None:
        if not len(features):
            raise ValueError("an aggregate posterior needs at least one image")
        self.family = copy.deepcopy(family).double().eval()
        self.features = features.double()
        q = self.posterior(slice(0, 1))
        if q.log_prob(q.mean[:, None]) is None:
            raise ValueError(
                f"{type(family).__name__} can evaluate its density only at its own draws, so its "
                "aggregate posterior cannot be computed"
            )

    def __len__(self) -> int:
        return len(self.features)

    def posterior(self, images: slice | Tensor) -> LatentDistribution:
        """Return q(z|x) of some of the images, in float64."""
        q: LatentDistribution = self.family(self.features[images])
        return q

    def draw(self, images: Tensor, noise: Noise, first: int = 0) -> tuple[Tensor, Tensor]:
        """Draw a latent for each of some images.

        Args:
            images: Positions of the images, (M,).
            noise: Noise of these images.
            first: Number of the draw.

        Returns:
            Latents in float64, (M, L), and log q(z|x) of the image that each is from, (M,).
        """
        q = self.posterior(images)
        z = q.rsample(_ExactNoise(noise), 1, first).z
        log_prob = q.log_prob(z)
        assert log_prob is not None
        return z[:, 0], log_prob[:, 0]

    def log_prob(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return log q(z) and log q(z_j) of latents.

        Args:
            z: Latents, float64, (M, L).

        Returns:
            Nats, (M,) and (M, V) for V variables; None where the marginals of q(z|x) are not known.
        """
        found = [self._log_prob(part) for part in z.split(_ROWS)]
        marginals = [of_variables for _, of_variables in found if of_variables is not None]
        joint = torch.cat([of_all for of_all, _ in found])
        return joint, torch.cat(marginals) if marginals else None

    def _log_prob(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return log q(z) and log q(z_j) of a few latents (m, L)."""
        cells = _CELLS if z.device.type == "cpu" else _CELLS_ELSEWHERE
        at_once = max(1, cells // max(1, z.numel()))
        joint: Tensor | None = None
        marginals: Tensor | None = None
        for first in range(0, len(self), at_once):
            q = self.posterior(slice(first, first + at_once))
            images = len(self.features[first : first + at_once])
            tiled = z.expand(images, *z.shape)
            log_prob, of_variables = q.log_prob(tiled), q.marginal_log_prob(tiled)
            assert log_prob is not None
            joint = _add(joint, log_prob)
            if of_variables is not None:
                marginals = _add(marginals, of_variables)
        assert joint is not None
        log_n = math.log(len(self))
        return joint - log_n, None if marginals is None else marginals - log_n


def _add(total: Tensor | None, log_probs: Tensor) -> Tensor:
    """Return the logarithm of a sum of densities, to which those of some images are added."""
    here = log_probs.logsumexp(0)
    return here if total is None else torch.logaddexp(total, here)


class _ExactNoise(Noise):
    """The same numbers as another stream of noise, in float64."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise.index, *noise.keys, batch=noise.batch)

    def uniform(self, size: int, first: int = 0) -> Tensor:
        """See `Noise.uniform`."""
        return super().uniform(size, first).double()

    def normal(self, size: int, first: int = 0) -> Tensor:
        """See `Noise.normal`."""
        return super().normal(size, first).double()
