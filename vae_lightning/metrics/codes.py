"""How well a prior predicts the codes of images."""

import math
from typing import cast

from vae_lightning.batch import Batch
from vae_lightning.metrics.base import Metric
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.discrete import CodeModel
from vae_lightning.results import NATS, Mean, Result
from vae_lightning.training.code_usage import CodeUsage
from vae_lightning.training.module import LitVAE


class Codes(Metric):
    """Negative log-likelihood per code, with two baselines for the same maps.

    ``uniform_code_nll`` gives each code the probability 1/K. ``independent_code_nll`` gives each
    code the frequency that it has in the measured images, whatever its position: what an ideal code
    without context would need. The frequencies are those of the measured images themselves, so this
    baseline is biased low.
    """

    name = "codes"
    requires = (Capability.CODE_PRIOR,)

    def start(self, module: LitVAE) -> None:
        """See `Metric.start`."""
        self.nll, self.usage = Mean(), CodeUsage()

    def update(self, module: LitVAE, batch: Batch) -> None:
        """See `Metric.update`."""
        model = cast(CodeModel, module.vae)
        condition = module.condition(batch)
        levels = model.codes(batch.x, condition)
        self.nll.update(model.code_nll(levels, condition))
        self.usage.update(model.by_codebook(levels), model.codebook_sizes)

    def compute(self, module: LitVAE) -> dict[str, Result]:
        """See `Metric.compute`."""
        model = cast(CodeModel, module.vae)
        nll = self.nll.result()
        codes = sum(one.length for one in model.code_maps)
        error = None if nll.error is None else nll.error / codes
        per_code = Result(nll.value / codes, "nats per code", error, nll.images)
        usage = self.usage.results(nll.images)
        bits = {
            kind: sum(found.value for name, found in usage.items() if name.endswith(kind))
            for kind in ("code_bits", "code_entropy_bits")
        }
        return {
            "code_nll_per_code": per_code,
            "uniform_code_nll": Result(bits["code_bits"] * math.log(2), NATS),
            "independent_code_nll": Result(bits["code_entropy_bits"] * math.log(2), NATS),
        }
