"""Disentanglement of the latent for data with known generative factors."""

import math
from typing import Any

import torch
from torch import Tensor

from vae_lightning import randomness
from vae_lightning.distributed import from_first
from vae_lightning.metrics import disentanglement
from vae_lightning.metrics.base import Metric
from vae_lightning.metrics.latents import ACTIVE
from vae_lightning.metrics.modularity import explicitness, modularity_score
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.results import Result
from vae_lightning.training.module import LitVAE

_ROWS = 512
_MOST_VALUES = 2**27
"""Largest number of values of the images of votes that are in memory together."""


class Disentanglement(Metric):
    """MIG, SAP, DCI, FactorVAE score, modularity and explicitness of the posterior means.

    The data module must have ``factors`` (of each image), ``factor_names``, ``categorical`` and
    ``with_fixed_factor``, as the bundled digits do. The first process computes the scores over the
    whole split and ignores ``limit_test_batches``. The FactorVAE score and modularity are those of
    the active dimensions.

    Args:
        votes: Number of training votes of the FactorVAE score, each from a batch of images with one
            factor fixed. Half as many again are drawn to score it.
        per_vote: Number of images per vote.
        images: Largest number of images of the split used for the other scores.

    Raises:
        ValueError: If an option is less than 2.

    References:
        See `vae_lightning.metrics.disentanglement` and `vae_lightning.metrics.modularity`.
    """

    name = "disentanglement"
    requires = (Capability.CONTINUOUS_LATENT,)

    def __init__(self, votes: int = 800, per_vote: int = 64, images: int = 10_000) -> None:
        super().__init__()
        for option, value in {"votes": votes, "per_vote": per_vote, "images": images}.items():
            if not value or value < 2:
                raise ValueError(f"metrics.{self.name}.{option} must be at least 2, got {value}")
        self.votes = votes
        self.per_vote = per_vote
        self.images = images

    def applies_to(self, model: GenerativeModel, data: Any) -> bool:
        """Return whether the latent is a vector and the factors of the data are known."""
        return super().applies_to(model, data) and hasattr(data, "with_fixed_factor")

    def compute(self, module: LitVAE) -> dict[str, Result]:
        """See `Metric.compute`."""
        return from_first(lambda: self._scores(module))

    def _scores(self, module: LitVAE) -> dict[str, Result]:
        data = self.data
        split = "val" if module.trainer.state.fn == "validate" else "test"
        n = min(self.images, len(data.datasets[split]))
        batch = data.datasets[split].__getitems__(range(n))
        latents = self._embed(module.vae, batch.x, batch.y)
        factors = data.factors[split][:n]
        # The scores are undefined for factors that are constant, as happens with few images.
        varies = (factors != factors[0]).any(0)
        if not varies.any() or not latents.isfinite().all():
            return {}  # one image, or a model that has diverged
        factors = factors[:, varies]
        categorical = [c for c, v in zip(data.categorical, varies, strict=True) if v]
        names = [name for name, v in zip(data.factor_names, varies, strict=True) if v]
        dci = disentanglement.dci(latents, factors, categorical)
        scores = {
            "mig": disentanglement.mutual_information_gap(latents, factors, categorical),
            "sap": disentanglement.sap_score(latents, factors, categorical),
            "dci_disentanglement": dci.disentanglement,
            "dci_completeness": dci.completeness,
            "dci_informativeness": dci.informativeness,
            "factor_vae_score": self._factor_vae_score(module, latents),
            "modularity": _modularity(latents, factors, categorical),
        }
        unit = "between 0 and 1"
        found = disentanglement.predictability(latents, factors, categorical)
        readable = explicitness(latents, factors, categorical).mean().item()
        return {
            **{name: Result(score, unit) for name, score in scores.items()},
            "explicitness": Result(readable, f"{unit}, 0.5 by chance"),
            "predictability": Result(
                {name: found[:, i].tolist() for i, name in enumerate(names)},
                "of each factor by each latent dimension: R^2, or accuracy above chance",
            ),
        }

    def _embed(self, model: GenerativeModel, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the posterior means (N, L) of uint8 images, in batches of a fixed size."""
        means = []
        for start in range(0, len(x), _ROWS):
            index = torch.arange(start, min(start + _ROWS, len(x)))
            images = self.data.evaluation_view(x[index], index)
            label = model.used_labels(None if y is None else y[index])
            means.append(model.latent_vectors(images, label).cpu())
        return torch.cat(means)

    def _factor_vae_score(self, module: LitVAE, latents: Tensor) -> float:
        votes = self.votes + self.votes // 2
        generator = randomness.generator(module.evaluation_seed, "factor_vae_score")
        fixed = torch.randint(len(self.data.factor_names), (votes,), generator=generator)
        scale = latents.var(0)
        active = scale > ACTIVE
        found, seed = [], module.evaluation_seed
        at_once = max(1, _MOST_VALUES // (self.per_vote * math.prod(module.model.image_shape)))
        for i, part in enumerate(fixed.split(at_once)):
            x, y = self.data.with_fixed_factor(part, self.per_vote, seed)
            moved = self._embed(module.vae, x, y).unflatten(0, (len(part), self.per_vote))
            found.append(moved.var(1))
            seed = randomness.derive_seed(module.evaluation_seed, "votes", i)
        variances = torch.cat(found) / scale.clamp(min=1e-12)
        return disentanglement.factor_vae_score(variances, fixed, active, self.votes)


def _modularity(latents: Tensor, factors: Tensor, categorical: list[bool]) -> float:
    """Return the modularity of the active dimensions, 0 without any."""
    active = latents.var(0) > ACTIVE
    return modularity_score(latents[:, active], factors, categorical) if active.any() else 0.0
