"""Disentanglement of the latent, where the factors behind the images are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae_lightning import randomness
from vae_lightning.distributed import from_first
from vae_lightning.metrics import disentanglement
from vae_lightning.metrics.latents import ACTIVE
from vae_lightning.metrics.measure import Measure
from vae_lightning.metrics.result import Result

if TYPE_CHECKING:
    from vae_lightning.models import BaseVAE

_ROWS = 512


class Disentanglement(Measure):
    """MIG, SAP, DCI and the score of FactorVAE, of the posterior means of the images.

    For data with ``factors`` (values of each image), ``factor_names``, ``categorical`` and
    ``with_fixed_factor``, such as the bundled digits. The first process computes it, over the whole
    split, whatever ``limit_test_batches`` says.

    Args:
        votes: Batches of images with one factor fixed, for the FactorVAE score; half as many again
            are drawn to score it.
        per_vote: Images in each.
        images: At most so many images of the split are used for the others.

    References:
        See `vae_lightning.metrics.disentanglement`.
    """

    name = "disentanglement"

    def __init__(self, votes: int = 800, per_vote: int = 64, images: int = 10_000) -> None:
        super().__init__()
        for option, value in {"votes": votes, "per_vote": per_vote, "images": images}.items():
            if not value or value < 2:
                raise ValueError(f"metrics.{self.name}.{option} must be at least 2, got {value}")
        self.votes = votes
        self.per_vote = per_vote
        self.images = images

    def applies_to(self, model: BaseVAE, data: Any) -> bool:
        """Models with a latent vector, on data with known factors."""
        return model.latent_dim is not None and hasattr(data, "with_fixed_factor")

    def compute(self, model: BaseVAE) -> dict[str, Result]:
        """See `Measure.compute`."""
        return from_first(lambda: self._scores(model))

    def _scores(self, model: BaseVAE) -> dict[str, Result]:
        data = self.data
        split = "val" if model.trainer.state.fn == "validate" else "test"
        n = min(self.images, len(data.datasets[split]))
        batch = data.datasets[split].__getitems__(range(n))
        codes = self._embed(model, batch.x, batch.y)
        factors = data.factors[split][:n]
        # A factor that never changes, in a handful of images, cannot be told from anything.
        varies = (factors != factors[0]).any(0)
        if not varies.any() or not codes.isfinite().all():
            return {}  # one image, or a model that has diverged
        factors = factors[:, varies]
        categorical = [c for c, v in zip(data.categorical, varies, strict=True) if v]
        names = [name for name, v in zip(data.factor_names, varies, strict=True) if v]
        dci = disentanglement.dci(codes, factors, categorical)
        scores = {
            "mig": disentanglement.mutual_information_gap(codes, factors, categorical),
            "sap": disentanglement.sap_score(codes, factors, categorical),
            "dci_disentanglement": dci.disentanglement,
            "dci_completeness": dci.completeness,
            "dci_informativeness": dci.informativeness,
            "factor_vae_score": self._factor_vae_score(model, codes),
        }
        unit = "between 0 and 1"
        found = disentanglement.predictability(codes, factors, categorical)
        return {
            **{name: Result(score, unit) for name, score in scores.items()},
            "predictability": Result(
                {name: found[:, i].tolist() for i, name in enumerate(names)},
                "of each factor by each latent dimension: R^2, or accuracy above chance",
            ),
        }

    def _embed(self, model: BaseVAE, x: Tensor, y: Tensor | None) -> Tensor:
        """Posterior means (N, L) of uint8 images, in batches of one size: the same everywhere."""
        means = []
        for start in range(0, len(x), _ROWS):
            index = torch.arange(start, min(start + _ROWS, len(x)))
            images = self.data.evaluation_view(x[index], index)
            label = y[index] if model.conditional and y is not None else None
            means.append(model.embed(images, label).cpu())
        return torch.cat(means)

    def _factor_vae_score(self, model: BaseVAE, codes: Tensor) -> float:
        votes = self.votes + self.votes // 2
        generator = randomness.generator(model.evaluation_seed, "factor_vae_score")
        fixed = torch.randint(len(self.data.factor_names), (votes,), generator=generator)
        x, y = self.data.with_fixed_factor(fixed, self.per_vote, model.evaluation_seed)
        moved = self._embed(model, x, y).unflatten(0, (votes, self.per_vote))
        scale = codes.var(0)
        active = scale > ACTIVE
        variances = moved.var(1) / scale.clamp(min=1e-12)
        return disentanglement.factor_vae_score(variances, fixed, active, self.votes)
