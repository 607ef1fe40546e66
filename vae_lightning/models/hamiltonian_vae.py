"""Hamiltonian VAE (Caterini et al., 2018), https://arxiv.org/abs/1805.11328."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import REAL, Draws, LatentDistribution
from vae_lightning.functional import standard_normal_log_prob, without_autocast
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.models.vae import VAE
from vae_lightning.randomness import Noise

Tempering = Literal["quadratic", "free", "none"]


class HamiltonianVAE(VAE):
    r"""VAE whose draws from q(z|x) are moved by leapfrog steps of the joint density.

    A draw :math:`z_0 \sim q_0(z|x)` and a momentum :math:`\rho_0 = \gamma / \sqrt{\beta_0}`,
    :math:`\gamma \sim N(0, I)`, go through K steps

    .. math:: \tilde\rho = \rho_{k-1} + \frac{\epsilon}{2} \nabla \log p(x, z_{k-1}), \quad
        z_k = z_{k-1} + \epsilon \tilde\rho, \quad
        \rho_k = \alpha_k \left( \tilde\rho + \frac{\epsilon}{2} \nabla \log p(x, z_k) \right)

    with learned step sizes :math:`\epsilon` and learned tempering
    :math:`\alpha_k = \sqrt{\beta_{k-1} / \beta_k}`, :math:`\beta_K = 1`. The importance weight is
    that of the extended space,

    .. math:: \log w = \log p(x, z_K) + \log N(\rho_K) - \log q_0(z_0|x) - \log N(\gamma)

    because each step preserves volume but for the tempering, whose factors cancel those of
    :math:`\sqrt{\beta_0}`. The negative ELBO is the mean of :math:`-\log w`. The ``kl`` term is
    that of the extended space. With K = 0 it is the VAE.

    Use it for a posterior that adapts to each image and to the decoder, with hardly any parameters.
    A step of training decodes K + 2 times and differentiates twice, and measuring needs gradients
    as well. `IAFPosterior` is faster.

    Args:
        leapfrog_steps: Number of leapfrog steps K.
        step_size: Step size of each dimension at the start of the training.
        max_step_size: Largest step size that can be learned.
        tempering: ``quadratic``, where :math:`1/\sqrt{\beta_k}` goes from :math:`1/\sqrt{\beta_0}`
            to 1 as k^2, ``free``, where each :math:`\alpha_k` is learned, or ``none``. Without it,
            exact dynamics would keep the energy and so the bound, which then gains only from the
            errors of large steps.
        beta_zero: The :math:`\beta_0` at the start of the training; no effect without tempering.
        **kwargs: See `VAE`. ``posterior`` is the family of q_0. The decoder is not compiled,
            because compiled networks cannot be differentiated twice.

    Raises:
        ValueError: If an option is out of range, or the posterior does not draw real vectors.

    References:
        Caterini et al. (2018), Hamiltonian variational auto-encoder,
        https://arxiv.org/abs/1805.11328

    Example:
        >>> HamiltonianVAE(leapfrog_steps=2, latent_dim=8).embed(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 8])
    """

    has_closed_form_kl = False
    draws_are_small = False  # they are decoded on the way

    step_size_logits: nn.Parameter | None
    tempering_logits: nn.Parameter | None

    def __init__(
        self,
        leapfrog_steps: int = 3,
        step_size: float = 0.05,
        max_step_size: float = 0.5,
        tempering: Tempering = "quadratic",
        beta_zero: float = 0.9,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if leapfrog_steps < 0:
            raise ValueError(f"{name}: leapfrog_steps must not be negative, got {leapfrog_steps}")
        if not 0 < step_size < max_step_size < math.inf:
            raise ValueError(
                f"{name}: step_size must be between 0 and max_step_size, got {step_size} and "
                f"{max_step_size}"
            )
        if tempering not in get_args(Tempering):
            raise ValueError(
                f"{name}: tempering must be {', '.join(get_args(Tempering))}, got {tempering!r}"
            )
        if not 0 < beta_zero < 1:
            raise ValueError(f"{name}: beta_zero must be between 0 and 1, got {beta_zero}")
        super().__init__(**kwargs)
        self.leapfrog_steps = leapfrog_steps
        self.max_step_size = max_step_size
        self.tempering: Tempering = tempering
        steps, alphas = None, None
        if leapfrog_steps:
            steps = _logits(self.latent_dim, step_size / max_step_size)
            if tempering == "quadratic":
                alphas = _logits(1, beta_zero)
            elif tempering == "free":
                alphas = _logits(leapfrog_steps, beta_zero ** (0.5 / leapfrog_steps))
        self.register_parameter("step_size_logits", steps)
        self.register_parameter("tempering_logits", alphas)

    def check_parts(self) -> None:
        """See `VAE.check_parts`; latents must be real vectors."""
        super().check_parts()
        family = self.posterior_family
        if family.support != REAL:
            raise ValueError(
                f"{type(self).__name__} moves real vectors, but {type(family).__name__} draws "
                f"{family.support}: choose another posterior, such as GaussianPosterior"
            )

    def attach_prior(self) -> None:
        """See `LatentVariableModel.attach_prior`; a prior is offered q_0(z|x)."""
        self.attach_prior_to(self.initial_posterior)

    @property
    def networks(self) -> list[nn.Module]:
        """See `ImageModel.networks`; the decoder, which is differentiated twice, is not one."""
        return [network for network in super().networks if network is not self.decoder]

    @property
    def step_sizes(self) -> Tensor:
        """The step size of each dimension, (L,)."""
        assert self.step_size_logits is not None
        return self.max_step_size * self.step_size_logits.float().sigmoid()

    @property
    def alphas(self) -> Tensor:
        r"""The factors :math:`\alpha_k` of the momentum after each step, (K,)."""
        if self.tempering_logits is None:
            return torch.ones(self.leapfrog_steps, device=self.device)
        learned = self.tempering_logits.float().sigmoid()
        if self.tempering == "free":
            return learned
        share = torch.linspace(0, 1, self.leapfrog_steps + 1, device=self.device).square()
        first = learned.rsqrt()
        heat = first + (1 - first) * share  # 1 / sqrt(beta_k) for k = 0, ..., K
        return heat[1:] / heat[:-1]

    def initial_posterior(self, x: Tensor, condition: Tensor | None = None) -> LatentDistribution:
        """Return q_0(z|x), before the leapfrog steps."""
        return LatentVariableModel.posterior(self, x, condition)

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> LatentDistribution:
        """Return q(z|x) with its momentum, see `HamiltonianPosterior`."""
        base = self.initial_posterior(x, condition)
        if not self.leapfrog_steps:
            return base

        def log_joint(z: Tensor) -> Tensor:
            return self.log_likelihood(x, z, condition) + self.log_prior(z, condition)

        return HamiltonianPosterior(base, log_joint, self.step_sizes, self.alphas)


class HamiltonianPosterior(LatentDistribution):
    r"""Draws from a distribution that are moved by leapfrog steps, with their momenta.

    The momenta are integrated out by importance sampling. ``log_prob`` of draws is therefore no
    density of z, but :math:`\log q_0(z_0) + \log N(\gamma) - \log N(\rho_K)`, with which weights
    p(x, z) / q are those of the extended space.

    Args:
        base: The distribution q_0 of z_0.
        log_joint: log p(x, z) in nats up to a constant, a function of z: (B, n, L) -> (B, n).
        step_sizes: Step size of each dimension, (L,).
        alphas: Factors of the momentum after each step, (K,).

    References:
        Caterini et al. (2018), Hamiltonian variational auto-encoder,
        https://arxiv.org/abs/1805.11328

    Example:
        >>> from vae_lightning.distributions.posteriors import DiagonalGaussian
        >>> base = DiagonalGaussian(mu=torch.ones(8, 2), log_var=torch.zeros(8, 2))
        >>> steps = torch.full((2,), 0.1), torch.ones(3)
        >>> q = HamiltonianPosterior(base, standard_normal_log_prob, *steps)
        >>> bool((q.mean < 1).all())  # moved towards the mode
        True
    """

    def __init__(
        self,
        base: LatentDistribution,
        log_joint: Callable[[Tensor], Tensor],
        step_sizes: Tensor,
        alphas: Tensor,
    ) -> None:
        self.base = base
        self.log_joint = log_joint
        self.step_sizes = step_sizes
        self.alphas = alphas

    @property
    def mean(self) -> Tensor:
        """The mean of the base, moved from rest, (B, L): a point estimate of the mean."""
        z = self.base.mean[:, None]
        return self.leapfrog(z, torch.zeros_like(z))[0][:, 0]

    def rsample(self, noise: Noise, n: int = 1, first: int = 0) -> Draws:
        """See `LatentDistribution.rsample`."""
        base = self.base.rsample(noise, n, first)
        size = base.z.shape[2]
        gamma = noise.normal(n * size, first * size).view(-1, n, size)
        # The product of the alphas is the square root of beta_0.
        z, momentum = self.leapfrog(base.z, gamma / self.alphas.prod())

        def log_prob() -> Tensor:
            kinetic = standard_normal_log_prob(gamma) - standard_normal_log_prob(momentum)
            return base.log_prob + kinetic

        return Draws(z, log_prob)

    def leapfrog(self, z: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """Move latents and momenta, both (B, n, L), by all steps."""
        half = 0.5 * self.step_sizes
        score = self._score(z)
        for alpha in self.alphas:
            momentum = momentum + half * score
            z = z + self.step_sizes * momentum
            score = self._score(z)
            momentum = alpha * (momentum + half * score)
        return z, momentum

    def _score(self, z: Tensor) -> Tensor:
        """Return the gradient of log p(x, z), also where autograd is switched off."""
        if not torch.is_grad_enabled():
            # The only way that takes tensors of the inference mode.
            log_joint, pull_back, *_ = torch.func.vjp(self.log_joint, z)
            with without_autocast(z):  # as in any backward pass
                (score,) = pull_back(torch.ones_like(log_joint))
            return score
        # Unlike torch.func, it lets batch normalization update its statistics.
        z = z if z.requires_grad else z.detach().requires_grad_()
        log_joint = self.log_joint(z)
        with without_autocast(z):
            (score,) = torch.autograd.grad(log_joint.sum(), z, create_graph=True)
        return score

    def parameters(self) -> dict[str, Tensor]:
        """Return ``mean``, and the parameters of the base with ``initial_`` before their names."""
        initial = {f"initial_{name}": value for name, value in self.base.parameters().items()}
        return {"mean": self.mean, **initial}


def _logits(size: int, p: float) -> nn.Parameter:
    return nn.Parameter(torch.full((size,), math.log(p / (1 - p))))
