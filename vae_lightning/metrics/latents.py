"""Use of the latent dimensions."""

from vae_lightning.batch import Batch
from vae_lightning.metrics.base import Metric
from vae_lightning.models.capabilities import Capability
from vae_lightning.results import NATS, Mean, Result
from vae_lightning.training.module import LitVAE

ACTIVE = 0.01
"""Variance of the posterior mean over images above which a latent dimension is active."""


class Latents(Metric):
    """Number of active units, and KL per latent dimension.

    A unit is active if the variance of its posterior mean over images exceeds `ACTIVE`. The KL is
    reported for models with a closed form of it.

    References:
        Burda et al. (2016), Importance weighted autoencoders, appendix C,
        https://arxiv.org/abs/1509.00519
    """

    name = "latents"
    requires = (Capability.CONTINUOUS_LATENT,)

    def start(self, module: LitVAE) -> None:
        """See `Metric.start`."""
        self.kl, self.mean = Mean(), Mean()

    def update(self, module: LitVAE, batch: Batch) -> None:
        """See `Metric.update`."""
        model = module.vae
        label = model.used_labels(batch.y)
        self.mean.update(model.latent_vectors(batch.x, label))
        if model.has(Capability.KL_PER_DIMENSION):
            self.kl.update(model.latent_kl(batch.x, label))

    def compute(self, module: LitVAE) -> dict[str, Result]:
        """See `Metric.compute`."""
        active = self.mean.compute()[1] > ACTIVE
        collapsed = [f"z{i}" for i in (~active).nonzero().flatten().tolist()]
        results = {
            "active_units": Result(int(active.sum()), f"of {len(active)} dimensions"),
            "collapsed": Result(collapsed, "dimensions"),
        }
        if self.kl.sums is not None:
            results["kl_per_dimension"] = Result(self.kl.compute()[0].tolist(), NATS)
        return results
