"""Which latent dimensions are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vae_lightning.data.batch import Batch
from vae_lightning.functional import standard_normal_kl
from vae_lightning.metrics.measure import Mean, Measure
from vae_lightning.metrics.result import NATS, Result

if TYPE_CHECKING:
    from vae_lightning.models import BaseVAE


ACTIVE = 0.01
"""Variance of the posterior mean over images above which a latent dimension is active."""


class Latents(Measure):
    """KL per latent dimension, and active units: the variance of the posterior mean over images.

    References:
        Burda et al. (2016), Importance weighted autoencoders, appendix C,
        https://arxiv.org/abs/1509.00519
    """

    name = "latents"

    def applies_to(self, model: BaseVAE, data: Any) -> bool:
        """Models whose latent is a vector with a Gaussian posterior."""
        return model.latent_dim is not None

    def start(self, model: BaseVAE) -> None:
        """See `Measure.start`."""
        self.kl, self.mu = Mean(), Mean()

    def update(self, model: BaseVAE, batch: Batch) -> None:
        """See `Measure.update`."""
        q = model.encode(batch.x, model.one_hot(batch))
        self.kl.update(standard_normal_kl(q["mu"], q["log_var"]))
        self.mu.update(q["mu"])

    def compute(self, model: BaseVAE) -> dict[str, Result]:
        """See `Measure.compute`."""
        active = self.mu.compute()[1] > ACTIVE
        collapsed = [f"z{i}" for i in (~active).nonzero().flatten().tolist()]
        return {
            "active_units": Result(int(active.sum()), f"of {len(active)} dimensions"),
            "collapsed": Result(collapsed, "dimensions"),
            "kl_per_dimension": Result(self.kl.compute()[0].tolist(), NATS),
        }
