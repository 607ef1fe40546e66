"""The aggregate posterior, and what the KL term consists of."""

import math
from typing import cast

import torch
from torch import Tensor

from vae_lightning import randomness
from vae_lightning.batch import Batch
from vae_lightning.distributed import gather_rows, total
from vae_lightning.distributions.aggregate_posterior import AggregatePosterior
from vae_lightning.metrics.base import Metric, check_positive
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.randomness import Noise
from vae_lightning.results import Result
from vae_lightning.training.module import LitVAE

_ROWS = 512
"""Number of latents of which the prior's density is computed at once."""


class AggregatePosteriorTerms(Metric):
    r"""What the KL term consists of: "ELBO surgery" with the aggregate posterior of the images.

    .. math:: \frac{1}{N} \sum_n KL(q(z|x_n) \| p(z)) = I(n; z) + KL(q(z) \| p(z)), \quad
        q(z) = \frac{1}{N} \sum_n q(z|x_n)

    ``aggregate_information`` is the first term, the mutual information of the image's number and
    its latent, and ``aggregate_kl`` the second one: what a prior that fits the latents better could
    save. For a prior with independent variables, the second one is once more divided,

    .. math:: KL(q(z) \| p(z)) = KL\big(q(z) \| \textstyle\prod_j q(z_j)\big)
        + \sum_j KL(q(z_j) \| p(z_j)),

    into ``aggregate_correlation``, the total correlation of the latent variables, and
    ``aggregate_dimension_kl``, which ``aggregate_kl_by_dimension`` lists.

    q(z) is the exact mixture over the images; expectations are means over draws from it. The mutual
    information of N images is at most log N, whatever the model does: a value near it says that no
    two posteriors overlap, not how much information there is in a latent. The KL of the aggregate
    is then too large by what is missing there. Compare models on equal numbers of images.

    For a conditional model, q(z|y) is the mixture over the images of a class, and is compared with
    p(z|y); results are means over the images.

    Args:
        draws: Number of draws from q(z), each from another image while there are enough.
        images: Largest number of images; if there are more, as many are chosen randomly. The time
            is proportional to it, to ``draws``, and to the number of latent dimensions.

    Raises:
        ValueError: If an option is not positive.

    References:
        Hoffman and Johnson (2016), ELBO surgery: yet another way to carve up the variational
        evidence lower bound, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
        Chen et al. (2018), Isolating sources of disentanglement in variational autoencoders,
        section 3, https://arxiv.org/abs/1802.04942
    """

    name = "aggregate_posterior"
    requires = (Capability.DENSITY, Capability.LATENT_VECTOR, Capability.POSTERIOR_DENSITY)

    def __init__(self, draws: int = 2000, images: int = 10_000) -> None:
        super().__init__()
        check_positive(self, draws=draws, images=images)
        self.draws = draws
        self.images = images

    def start(self, module: LitVAE) -> None:
        """See `Metric.start`."""
        size = cast(LatentVariableModel, module.vae).posterior_family.in_features
        self.features = [torch.empty(0, size, device=module.device)]
        none = torch.empty(0, dtype=torch.int64, device=module.device)
        self.indices, self.labels = [none], [none]

    def update(self, module: LitVAE, batch: Batch) -> None:
        """See `Metric.update`."""
        model = cast(LatentVariableModel, module.vae)
        label = model.used_labels(batch.y)
        self.features.append(model.posterior_features(batch.x, module.condition(batch)))
        self.indices.append(batch.indices)
        self.labels.append(torch.zeros_like(batch.indices) if label is None else label)

    def compute(self, module: LitVAE) -> dict[str, Result]:
        """See `Metric.compute`."""
        model = cast(LatentVariableModel, module.vae)
        parts = self.features, self.indices, self.labels
        features, indices, label = (gather_rows(torch.cat(part)) for part in parts)
        device = torch.device("cpu") if features.is_mps else features.device
        order = indices.argsort()
        if len(order) > self.images:
            seed = module.evaluation_seed
            chosen = randomness.choose(len(order), self.images, seed, "aggregate images")
            order = order[chosen.sort().values.to(order.device)]
        self.start(module)  # forgets the features of all images
        features, indices, label = (x[order].to(device) for x in (features, indices, label))
        by_draw = self._terms(module, model, features, indices, label)
        return self._results(by_draw, label, model)

    def _terms(
        self,
        module: LitVAE,
        model: LatentVariableModel,
        features: Tensor,
        indices: Tensor,
        label: Tensor,
    ) -> dict[str, Tensor]:
        """Return each term for each draw, (M,) or (M, V), the same in all processes."""
        n = len(features)
        found: dict[str, Tensor] = {}
        turn = randomness.choose(n, n, module.evaluation_seed, "aggregate draws").to(label.device)
        # Which of the draws come from which image: every image once, then again, and so on.
        source = turn.repeat(-(-self.draws // n))[: self.draws]
        rank, processes = module.trainer.global_rank, module.trainer.world_size
        own = torch.arange(len(source), device=label.device) % processes == rank
        for y in label.unique():
            in_class = (label == y).nonzero().flatten()
            q = AggregatePosterior(model.posterior_family, features[in_class])
            for first in range(0, len(source), n):
                # Every process takes part in the sums below, also of classes it has no draws of.
                here = first + (label[source[first : first + n]] == y).nonzero().flatten()
                here = here[own[here]]
                images = source[here]
                noise = Noise(indices[images], module.evaluation_seed, "aggregate")
                place = torch.searchsorted(in_class, images)
                for name, value in _terms_of(model, q, place, noise, first // n, y).items():
                    if name not in found:
                        found[name] = value.new_zeros(len(source), *value.shape[1:])
                    found[name][here] = value
        return {name: total(value) for name, value in found.items()}

    def _results(
        self, by_draw: dict[str, Tensor], label: Tensor, model: LatentVariableModel
    ) -> dict[str, Result]:
        counts = label.bincount()
        counts = counts[counts > 0].double()
        most = (counts / counts.sum() * counts.log()).sum().item()
        given = " given the class" if model.needs_labels else ""
        what = "images of a class" if model.needs_labels else "images"
        number = f"{counts.mean().round().int().item():,}"
        bound = f"{number} {what} allow at most log N = {most:.2f}"
        if model.needs_labels and len(counts.unique()) > 1:
            bound = f"{number} {what} on average allow at most {most:.2f}"
        units = {
            "information": f"nats, I(n; z){given}; {bound}",
            "kl": f"nats, KL(q(z) || p(z)){given}",
            "correlation": f"nats, total correlation of q(z){given}",
            "dimension_kl": f"nats, sum of KL(q(z_j) || p(z_j)){given}",
            "kl_by_dimension": f"nats{given}",
        }
        results = {}
        for key, unit in units.items():
            if key not in by_draw:
                continue
            values = by_draw[key]
            if values.ndim > 1:
                results[f"aggregate_{key}"] = Result(values.mean(0).tolist(), unit)
                continue
            error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
            results[f"aggregate_{key}"] = Result(values.mean().item(), unit, error)
        return results


def _terms_of(
    model: LatentVariableModel,
    q: AggregatePosterior,
    images: Tensor,
    noise: Noise,
    draw: int,
    label: Tensor,
) -> dict[str, Tensor]:
    """Return the terms of one draw for each of some images, (M,) or (M, V)."""
    z, own = q.draw(images, noise, draw)
    joint, marginals = q.log_prob(z)
    of_prior = model.prior.marginal_log_prob(z[:, None])
    prior = _log_prior(model, z, label) if of_prior is None else of_prior[:, 0].sum(1)
    terms = {"information": own - joint, "kl": joint - prior}
    if marginals is not None:
        terms["correlation"] = joint - marginals.sum(1)
        if of_prior is not None:
            terms["dimension_kl"] = marginals.sum(1) - prior
            terms["kl_by_dimension"] = marginals - of_prior[:, 0]
    return terms


def _log_prior(model: LatentVariableModel, z: Tensor, label: Tensor) -> Tensor:
    """Return log p(z), or log p(z|y), of latents of a class, (M,)."""
    found = [z.new_zeros(0)]
    for part in z.float().to(model.device).split(_ROWS):
        y = label.to(part.device).expand(len(part)) if model.needs_labels else None
        condition = model.encode_labels(y, len(part), validate=False)
        found.append(model.log_prior(part[:, None], condition)[:, 0].to(z.device).double())
    return torch.cat(found)
