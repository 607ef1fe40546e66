"""Regularized autoencoder (Ghosh et al., 2020), https://arxiv.org/abs/1903.12436."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vae_lightning.models.autoencoder import Autoencoder
from vae_lightning.models.base import Terms
from vae_lightning.randomness import Noise

Regularizer = Literal["l2", "gradient", "spectral", "none"]

_WEIGHTS = {"l2": 1e-3, "gradient": 1.0, "spectral": 0.0, "none": 0.0}
"""Default weights of the regularizers of the decoder."""


@dataclass(frozen=True)
class RAETerms(Terms):
    """The terms of the objective.

    Attributes:
        reconstruction: -log p(x|z) in nats, (B,).
        latent_norm: Half the squared norm of the latent, (B,).
        decoder_norm: Squared norm of the decoder's parameters, (), if it is penalized.
        jacobian_norm: Estimated squared norm of the decoder's Jacobian, (B,), if it is penalized.
    """

    latent_norm: Tensor
    decoder_norm: Tensor | None = None
    jacobian_norm: Tensor | None = None

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        units = {
            "latent_norm": "half squared norm of the latent",
            "decoder_norm": "squared norm of the decoder's parameters",
            "jacobian_norm": "squared Frobenius norm of the decoder's Jacobian",
        }
        return units.get(name) or super().unit(name)


class RAE(Autoencoder):
    r"""Deterministic autoencoder with a penalty of its latents and a regularized decoder.

    .. math:: -\log p(x|z) + \frac{\beta}{2} \|z\|^2 + \lambda R, \quad z = E(x)

    The regularizer R of the decoder D takes the place of the noise of a VAE, and keeps it smooth:

    - ``l2``: the squared norm of the parameters of D, as weight decay;
    - ``gradient``: the squared Frobenius norm of the Jacobian of the mean image,
      :math:`\|\nabla_z D(z)\|_F^2`, estimated without bias by :math:`|\nabla_z v^T D(z)|^2` with a
      random sign v for each pixel;
    - ``spectral``: every layer of D has a spectral norm of 1, and there is no term. Without
      normalization layers, D then cannot amplify: latents become large, and need a small beta;
    - ``none``: the penalty of the latents alone.

    There is no prior: samples come from a density that is fitted to the latents afterwards
    (``vae density fit``; the paper's is a mixture of 10 Gaussians). Use it instead of a VAE for
    samples and embeddings, where no likelihood is needed.

    Args:
        beta: Weight of half the squared norm of the latents.
        regularizer: ``l2``, ``gradient``, ``spectral`` or ``none``.
        lambd: Weight of R; by default 1e-3 for ``l2`` and 1 for ``gradient``. The code of the paper
            has weights for means of the squared error over 1024 pixels and of z^2 over 16
            dimensions. For sums they are beta = 0.0128 and lambda = 1e-4 (``l2``) beside a squared
            error, a Gaussian likelihood with sigma = 0.707; the cross-entropy of a Bernoulli is
            some ten times as large.
        **kwargs: See `Autoencoder`. With ``gradient``, the decoder is not compiled, because
            compiled networks cannot be differentiated twice.

    Raises:
        ValueError: If a weight is negative, or has no effect, or there is no such regularizer.

    References:
        Ghosh et al. (2020), From variational to deterministic autoencoders,
        https://arxiv.org/abs/1903.12436
        Hutchinson (1990), A stochastic estimator of the trace of the influence matrix,
        https://doi.org/10.1080/03610919008812866

    Example:
        >>> RAE(regularizer="gradient", latent_dim=16).lambd
        1.0
    """

    def __init__(
        self,
        beta: float = 0.1,
        regularizer: Regularizer = "l2",
        lambd: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if regularizer not in _WEIGHTS:
            raise ValueError(f"regularizer must be {', '.join(_WEIGHTS)}, got {regularizer!r}")
        if lambd is not None and not _WEIGHTS[regularizer]:
            raise ValueError(
                f"lambd has no effect with the regularizer {regularizer}: leave it out"
            )
        self.beta = beta
        self.regularizer: Regularizer = regularizer
        self.lambd = _WEIGHTS[regularizer] if lambd is None else lambd
        for name, weight in {"beta": self.beta, "lambd": self.lambd}.items():
            if not weight >= 0:
                raise ValueError(f"{name} must not be negative, got {weight}")
        if regularizer == "spectral":
            for module in list(self.decoder.modules()):
                matrix = getattr(module, "weight", None)
                if isinstance(matrix, Tensor) and matrix.ndim > 1:
                    spectral_norm(module)

    @property
    def networks(self) -> list[nn.Module]:
        """See `ImageModel.networks`; a decoder that is differentiated twice is not compiled."""
        twice = {self.decoder} if self.regularizer == "gradient" else set()
        return [network for network in super().networks if network not in twice]

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> RAETerms:
        """See `BaseVAE.terms`."""
        z = self.latents(x, condition)
        latent_norm = 0.5 * z.square().sum(1)
        if self.regularizer == "gradient":
            params, jacobian_norm = self._decode_with_jacobian(z, condition, noise)
            log_likelihood = self.likelihood.log_prob(params, x)
            return RAETerms(-log_likelihood, latent_norm, jacobian_norm=jacobian_norm)
        log_likelihood = self.log_likelihood(x, z[:, None], condition)[:, 0]
        decoder_norm = None
        if self.regularizer == "l2":
            squares = [p.float().square().sum() for p in self.decoder.parameters()]
            decoder_norm = torch.stack(squares).sum()
        return RAETerms(-log_likelihood, latent_norm, decoder_norm)

    def _decode_with_jacobian(
        self, z: Tensor, condition: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Decode latents (B, L), and estimate the squared norm of the Jacobian, (B,)."""
        learns = torch.is_grad_enabled()
        # In evaluation, too, where autograd is off; tensors from there must be copied.
        with torch.inference_mode(False), torch.enable_grad():
            z = z if z.requires_grad else z.detach().clone().requires_grad_()
            condition = None if condition is None else condition.clone()
            params = self.likelihood_params(z, condition)
            image = self.likelihood.mean(params).flatten(1)
            signs = torch.where(noise.uniform(image.shape[1]) < 0.5, -1.0, 1.0)
            (gradient,) = torch.autograd.grad(
                (signs * image).sum(), z, create_graph=learns, retain_graph=learns
            )
        return params if learns else params.detach(), gradient.float().square().sum(1)

    def objective(self, terms: Terms) -> Tensor:
        """Return reconstruction + beta latent_norm + lambda times the norm of the decoder, (B,)."""
        assert isinstance(terms, RAETerms)
        loss = terms.reconstruction + self.beta * terms.latent_norm
        for norm in (terms.decoder_norm, terms.jacobian_norm):
            loss = loss if norm is None else loss + self.lambd * norm
        return loss
