"""VAE-GAN (Larsen et al., 2016), https://arxiv.org/abs/1512.09300."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.distributed import own_rows
from vae_lightning.functional import scale_gradient, softplus
from vae_lightning.models.base import Terms
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.vae import VAE
from vae_lightning.nets.critics import ConvCritic
from vae_lightning.randomness import Noise


@dataclass(frozen=True)
class VAEGANTerms(Terms):
    """The terms of the three networks, each (B,).

    Attributes:
        reconstruction: -log p(x|z) of the pixels in nats. It is reported, but not trained on.
        feature_error: Half the squared distance between image and reconstruction in the features
            of the critic: -log of a Gaussian with variance 1, in nats, up to a constant.
        kl: KL(q(z|x) || p(z)) in nats.
        adversarial: How well the critic tells reconstructions and samples from images: the mean of
            -log D over both, in nats.
        critic: Cross-entropy of the critic, in nats.
    """

    feature_error: Tensor
    kl: Tensor
    adversarial: Tensor
    critic: Tensor

    batch_dependent = frozenset({"adversarial", "critic"})

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        if name in ("adversarial", "critic"):
            return "nats per decision"
        return "of the critic's features" if name == "feature_error" else super().unit(name)


class VAEGAN(VAE):
    r"""VAE whose images are compared in the features of a critic, which they have to convince.

    Three networks have an objective each:

    - the encoder: :math:`KL(q(z|x) \| p(z)) + \frac{1}{2} \|f(x) - f(\tilde{x})\|^2`,
    - the decoder: :math:`\frac{\gamma}{2} \|f(x) - f(\tilde{x})\|^2 - \frac{1}{2} \log D(\tilde{x})
      - \frac{1}{2} \log D(x_p)`,
    - the critic D: :math:`-\frac{1}{2} \log D(x) - \frac{1}{4} \log(1 - D(\tilde{x})) - \frac{1}{4}
      \log(1 - D(x_p))`,

    with the features f of the critic's last map, a reconstruction :math:`\tilde{x}` and a sample
    :math:`x_p` of the prior. Images become sharper than those of a `VAE`, whose pixels are
    independent given z. There is no likelihood of images: the Gaussian is one of features, which
    change during the training. The adversarial loss is the one that does not saturate.

    Args:
        gamma: Weight of the feature error for the decoder, against the adversarial term.
        critic_channels: Output channels of the critic's convolutions, see `ConvCritic`.
        **kwargs: See `VAE`, without ``num_samples``. The likelihood converts what the decoder
            returns to images.

    Raises:
        ValueError: If ``gamma`` is not positive, or the likelihood has parameters, which nothing
            would train.

    References:
        Larsen et al. (2016), Autoencoding beyond pixels using a learned similarity metric,
        algorithm 1, https://arxiv.org/abs/1512.09300

    Example:
        >>> VAEGAN(latent_dim=10).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """

    critic: nn.Module

    def __init__(
        self, gamma: float = 0.01, critic_channels: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, got {gamma}")
        if self.num_samples != 1:
            raise ValueError(
                f"VAEGAN compares one draw of each image, got num_samples {self.num_samples}: "
                "leave it out"
            )
        if any(parameter.requires_grad for parameter in self.likelihood.parameters()):
            raise ValueError(
                f"VAEGAN does not train its likelihood, but {type(self.likelihood).__name__} has "
                "parameters: leave out learn_sigma, or choose another likelihood"
            )
        self.gamma = gamma
        self.critic = ConvCritic(self.image_shape, self.cond_features, critic_channels)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `GenerativeModel.capabilities`; the likelihood of the pixels is not trained."""
        return super().capabilities - {Capability.DENSITY}

    def terms(  # type: ignore[override]
        self, x: Tensor, condition: Tensor | None, noise: Noise
    ) -> VAEGANTerms:
        """See `BaseVAE.terms`."""
        n = len(x)
        q = self.posterior(x, condition)
        draws = q.rsample(noise)
        z = draws.z[:, 0]
        prior = self.joined_prior_samples(n, condition, noise)[own_rows(x)].detach()
        # The encoder sees the feature error with weight 1, and nothing of the adversarial term.
        latents = torch.cat([scale_gradient(z, 1 / self.gamma), z.detach(), prior.to(z.dtype)])
        of_three = None if condition is None else condition.repeat(3, 1)
        params = self.likelihood_params(latents, of_three)
        compared, reconstructed, sampled = self.likelihood.mean(params).chunk(3)
        seen = self.to_device_dtype(torch.cat([x, reconstructed.detach(), sampled.detach()]))
        logit, features = self.critic(seen, of_three)
        real, *fakes = logit.chunk(3)
        compared = scale_gradient(compared, self.gamma)
        shown = self.to_device_dtype(torch.cat([compared, reconstructed, sampled]))
        fooled, of_compared = self.frozen_critic(shown, of_three)
        error = (of_compared[:n] - features[:n].detach()).square().flatten(1).sum(1)
        _, *convincing = softplus(-fooled).chunk(3)
        return VAEGANTerms(
            reconstruction=-self.likelihood.log_prob(params[:n].detach(), x),
            feature_error=0.5 * error,
            kl=self.kl(q, draws, condition),
            adversarial=torch.stack(convincing).mean(0),
            critic=0.5 * (softplus(-real) + softplus(torch.stack(fakes)).mean(0)),
        )

    def objective(self, terms: Any) -> Tensor:
        """Return feature error + KL + adversarial term, (B,); see `VAEGAN` for who learns what."""
        assert isinstance(terms, VAEGANTerms)
        return terms.feature_error + terms.kl + terms.adversarial

    def critic_objective(self, terms: VAEGANTerms) -> Tensor:
        """Return the cross-entropy of the critic, (B,)."""
        return terms.critic
