"""VAE with a capacity (Burgess et al., 2018), https://arxiv.org/abs/1804.03599."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vae_lightning.models.part_checks import check_closed_form_kl
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.schedules import Constant, Schedule


class CapacityVAE(VAE):
    r"""VAE whose KL term is held at a capacity C, which may grow: gamma abs(KL - C).

    .. math:: -E_q[\log p(x|z)] + \gamma \, | KL(q(z|x) \| p(z)) - C |

    for each image, as in equation 8 of the paper. Some implementations take the distance of the
    mean over the batch instead, whose gradient changes its sign for all images at once; it
    reconstructs worse at the same KL. With a small C, the latent holds
    what helps the reconstruction most; as C grows, dimensions are added one after the other. Use it
    instead of `BetaVAE` where beta would have to be tuned to get a certain KL. The reported bound
    is the negative ELBO.

    Args:
        gamma: Weight of the distance from the capacity. With a large one, little is learned but to
            spend exactly C nats on every image.
        capacity: Capacity C in nats per image, at the end of the schedule.
        schedule: Factor of the capacity over the training, such as `LinearWarmup`. Validation and
            test use the whole capacity, so that their losses can be compared between epochs.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``gamma`` or ``capacity`` is negative, or the KL has no closed form.

    References:
        Burgess et al. (2018), Understanding disentangling in beta-VAE,
        https://arxiv.org/abs/1804.03599 (gamma 1000, C from 0 to 25 nats in 100,000 steps)

    Example:
        >>> CapacityVAE(capacity=25.0, latent_dim=10).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(
        self,
        gamma: float = 10.0,
        capacity: float = 25.0,
        schedule: Callable[[], Schedule] = Constant,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in {"gamma": gamma, "capacity": capacity}.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.gamma = gamma
        self.capacity = capacity
        self.schedule = schedule()

    def check_parts(self) -> None:
        """See `LatentVariableModel.check_parts`; the distance of an estimate would be too large."""
        check_closed_form_kl(self, "holds the KL of each image at a capacity")
        super().check_parts()

    def objective(self, terms: ELBOTerms) -> Tensor:
        """Return reconstruction + gamma |KL - C|, (B,)."""
        capacity = self.capacity * (self.schedule(self.step) if self.training else 1.0)
        return terms.reconstruction + self.gamma * (terms.kl - capacity).abs()
