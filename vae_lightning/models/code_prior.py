"""Autoregressive prior over the codes of a trained autoencoder."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_lightning import checkpoint
from vae_lightning.distributions.likelihoods import Likelihood
from vae_lightning.distributions.posteriors import Latents
from vae_lightning.errors import UserError
from vae_lightning.files import expand
from vae_lightning.functional import without_autocast
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.discrete import (
    CodeModel,
    DiscreteModel,
    flatten_codes,
    one_or_all,
    unflatten_codes,
)
from vae_lightning.models.image_model import Labels, ObjectiveTerms
from vae_lightning.models.loading import build, load
from vae_lightning.nets.code_networks import CausalTransformer, CodeNetwork, MapShape, draw_codes
from vae_lightning.randomness import Noise
from vae_lightning.truncation import Truncation

_ROWS = 256
"""Number of maps drawn at once."""


@dataclass(frozen=True)
class CodePriorTerms(ObjectiveTerms):
    """The terms of a prior's objective in nats per image, each (B,).

    Attributes:
        code_nll: -log p(codes), which is trained on.
        levels: The parts of it by the name of the level, the uppermost first.
        reconstruction: -log p(x|codes), summed over the pixels; not computed in training.
        indices: The codes, int64, by codebook; not logged.
    """

    code_nll: Tensor
    levels: dict[str, Tensor]
    reconstruction: Tensor | None = None
    indices: dict[str, Tensor] = field(default_factory=dict)

    evaluation_only: ClassVar[frozenset[str]] = frozenset({"reconstruction", "negative_elbo"})

    def as_dict(self) -> dict[str, Tensor]:
        """Return the terms, and the bound -log p(x, codes) on -log p(x)."""
        named = {"code_nll": self.code_nll}
        if len(self.levels) > 1:
            named |= {f"code_nll_{name}": level for name, level in self.levels.items()}
        if self.reconstruction is not None:
            named["reconstruction"] = self.reconstruction
            named["negative_elbo"] = self.reconstruction + self.code_nll
        return named

    def code_indices(self) -> dict[str, Tensor]:
        """See `ObjectiveTerms.code_indices`."""
        return self.indices


class CodePrior(CodeModel):
    """Autoregressive prior over the codes of an autoencoder, which makes it a generative model.

    The model is p(x) = sum over codes of p(codes) p(x|codes). The autoencoder is frozen. The prior
    is a product over the codes in raster order, log p(codes) = sum_j log p(code_j | codes before
    j). Of several levels of codes, the upper ones come first, and the network of a level sees the
    levels above.

    With the codes that the encoder assigns to x, -log p(x) <= -log p(x|codes) - log p(codes): the
    negative ELBO of a deterministic posterior, comparable with that of models with the same
    likelihood.

    Args:
        autoencoder: Checkpoint of a `VQVAE` or another model with codes. From Python, it may be the
            model itself. In a checkpoint of this model, which holds the weights of both, it is what
            `Configurable.describe` returned for the autoencoder, as JSON.
        network: Autoregressive network, one for each level.
        **kwargs: See `ImageModel`. ``conditional`` is required if the autoencoder sees the class.

    Attributes:
        networks_by_level: The networks, the uppermost level first.
        code_maps: The maps of codes by level.
        trained_on: The data that the autoencoder was trained on, if its checkpoint records them.

    Raises:
        ValueError: If there is no autoencoder, it has no codes, or it does not match the image
            shape or the classes of the data.

    References:
        van den Oord et al. (2017), Neural discrete representation learning, section 3.3,
        https://arxiv.org/abs/1711.00937
        Razavi et al. (2019), Generating diverse high-fidelity images with VQ-VAE-2,
        https://arxiv.org/abs/1906.00446
    """

    def __init__(
        self,
        autoencoder: str | None = None,
        network: Callable[[MapShape, int, int, int], CodeNetwork] = CausalTransformer,
        **kwargs: Any,
    ) -> None:
        made, has_weights, trained_on = _autoencoder(autoencoder)
        self.record_argument("autoencoder", json.dumps(made.describe()))
        super().__init__(**kwargs)
        _check_fit(made, self)
        self.has_weights = has_weights
        self.trained_on = trained_on
        self.autoencoder = made.requires_grad_(False).train()  # `codes` switches its mode
        self.code_maps = made.code_maps
        cond_features = self.num_classes if self.conditional else 0
        above, networks = 0, []
        for one in self.code_maps:
            networks.append(network(one.shape, one.codebook_size, cond_features, above))
            above += self._channels(len(networks) - 1)
        self.networks_by_level = nn.ModuleList(networks)
        self.register_load_state_dict_pre_hook(_check_autoencoder)

    # The autoencoder

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The encoder of the autoencoder."""
        return self.autoencoder.encoder

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """The decoder of the autoencoder."""
        return self.autoencoder.decoder

    @property
    def likelihood(self) -> Likelihood:  # type: ignore[override]
        """p(x|codes)."""
        return self.autoencoder.likelihood

    def _seen(self, condition: Tensor | None) -> Tensor | None:
        """Return what the autoencoder sees of a condition."""
        return condition if self.autoencoder.conditional else None

    @property
    def networks(self) -> list[nn.Module]:
        """See `ImageModel.networks`."""
        return list(self.networks_by_level)

    def unsharded_parameters(self) -> list[nn.Parameter]:
        """See `ImageModel.unsharded_parameters`; the autoencoder has no gradients to shard."""
        own = [p for net in self.networks for p in net.parameters() if p.ndim == 0]
        return [*own, *self.autoencoder.parameters()]

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `ImageModel.capabilities`."""
        return super().capabilities | {Capability.DENSITY}

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `ImageModel.codebooks`."""
        return self.autoencoder.codebooks

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """See `ImageModel.codebook_sizes`."""
        return self.autoencoder.codebook_sizes

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """See `DiscreteModel.level_sizes`."""
        return self.autoencoder.level_sizes

    @property
    def level_names(self) -> tuple[str, ...]:
        """See `DiscreteModel.level_names`."""
        return self.autoencoder.level_names

    def codes(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """See `DiscreteModel.codes`; in evaluation mode and in full precision, always."""
        with self.autoencoder.inference(), without_autocast(x):
            return self.autoencoder.codes(x, self._seen(condition))

    def lookup(self, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `DiscreteModel.lookup`."""
        return self.autoencoder.lookup(codes)

    def network_condition(self, label: Labels, n: int) -> Tensor | None:
        """See `GenerativeModel.network_condition`; labels are needed if the autoencoder does."""
        if label is None and not self.autoencoder.conditional:
            return None
        return self.encode_labels(label, n)

    def likelihood_params(self, z: Latents, condition: Tensor | None) -> Tensor:
        """See `GenerativeModel.likelihood_params`."""
        return self.autoencoder.likelihood_params(z, self._seen(condition))

    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """Return the codes as `named_codes` does, and their -log p in nats as ``code_nll``."""
        levels = self.codes(x, condition)
        return {**self.named_codes(levels), "code_nll": self.code_nll(levels, condition)}

    # The prior

    def level_nll(self, levels: tuple[Tensor, ...], condition: Tensor | None) -> tuple[Tensor, ...]:
        """See `CodeModel.level_nll`."""
        found = []
        for i, level in enumerate(levels):
            flat = level.flatten(1).long()
            logits = self.logits(i, levels, condition)
            nll = functional.cross_entropy(logits.transpose(1, 2), flat, reduction="none")
            found.append(nll.sum(1))
        return tuple(found)

    def logits(self, i: int, levels: tuple[Tensor, ...], condition: Tensor | None = None) -> Tensor:
        """Return the logits of each code of level ``i`` given the codes before it, (B, N, K)."""
        network = cast(CodeNetwork, self.networks_by_level[i])
        logits: Tensor = network(levels[i].flatten(1).long(), condition, self._context(levels[:i]))
        return logits.float()

    def _context(self, above: tuple[Tensor, ...]) -> Tensor | None:
        """Return the vectors of the codes of the levels above, which a network sees."""
        if not above:
            return None
        with self.autoencoder.inference():
            vectors = self.autoencoder.lookup(above)
        size = vectors[-1].shape[2:]
        return torch.cat([functional.interpolate(v.float(), size) for v in vectors], 1)

    def _channels(self, i: int) -> int:
        """Return the number of channels of the vectors of level ``i``."""
        codes = [torch.zeros(1, *one.dims, dtype=torch.int64) for one in self.code_maps[: i + 1]]
        with self.inference():
            return self.autoencoder.lookup(tuple(codes))[i].shape[1]

    def frozen_features(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """See `ImageModel.frozen_features`: the codes of all levels, (B, N), as small integers."""
        self._check_weights()
        flat = flatten_codes(self.codes(x, condition))
        most = max(one.codebook_size for one in self.code_maps)
        return flat.to(torch.int16 if most <= 2**15 else torch.int32)

    def check_inputs(self, x: Tensor, values: bool = True) -> None:
        """See `ImageModel.check_inputs`."""
        if x.is_floating_point() or x.ndim != 2:
            super().check_images(x, values)

    def _levels(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """Return the codes by level of images, or of what `frozen_features` returned."""
        if x.is_floating_point():
            return self.codes(x, condition)
        return unflatten_codes(x.long(), self.code_maps)

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> CodePriorTerms:
        """See `ImageModel.terms`; nothing here is random.

        Raises:
            UserError: If the autoencoder has never been trained.
        """
        if self.training:
            self._check_weights()
        levels = self._levels(x, condition)
        parts = self.level_nll(levels, condition)
        reconstruction = None
        if not self.training and x.is_floating_point():
            reconstruction = self._reconstruction(x, levels, condition)
        indices = self.by_codebook(levels)
        by_level = dict(zip(self.level_names, parts, strict=True))
        return CodePriorTerms(torch.stack(parts).sum(0), by_level, reconstruction, indices)

    def _check_weights(self) -> None:
        if not self.has_weights:
            raise UserError(
                "the autoencoder of this CodePrior is untrained: give --model.autoencoder the "
                "checkpoint of a trained one"
            )

    def _reconstruction(
        self, x: Tensor, levels: tuple[Tensor, ...], condition: Tensor | None
    ) -> Tensor:
        """Return -log p(x|codes) in nats, (B,)."""
        params = self.likelihood_params(one_or_all(self.lookup(levels)), condition)
        return -self.likelihood.log_prob(params, x)

    def objective(self, terms: CodePriorTerms) -> Tensor:
        """Return -log p(codes), (B,)."""
        return terms.code_nll

    samples_likelihood: ClassVar[bool] = False

    def log_marginal(
        self,
        x: Tensor,
        condition: Tensor | None,
        noise: Noise,
        num_samples: int,
        rows: int | None = None,
    ) -> Tensor:
        """Return log p(x, codes of x), a lower bound on log p(x) that needs no samples."""
        with self.inference():
            levels = self.codes(x, condition)
            nll = self.code_nll(levels, condition)
            total = nll + self._reconstruction(x, levels, condition)
        return -total if x.is_mps else -total.double()

    # Samples

    def sample_codes(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        truncation: Truncation | None = None,
    ) -> tuple[Tensor, ...]:
        """See `CodeModel.sample_codes`.

        Raises:
            ValueError: If the model is conditional and there is not one condition per image.
        """
        if self.conditional and (condition is None or len(condition) != n):
            raise ValueError(
                f"this {type(self).__name__} is conditional: give the classes as one-hot vectors, "
                f"({n}, {self.num_classes}), or use vae_lightning.explore.sample_codes, which "
                "takes labels"
            )
        sizes = [one.length for one in self.code_maps]
        uniform = torch.rand(n, sum(sizes), dtype=torch.float64, generator=generator)
        drawn = []
        with self.inference(), without_autocast(next(self.parameters())):
            for part in torch.arange(n).split(_ROWS):
                classes = None if condition is None else condition[part.to(condition.device)]
                drawn.append(self._draw(uniform[part].split(sizes, 1), classes, truncation))
        return tuple(torch.cat(level) for level in zip(*drawn, strict=True))

    def _draw(
        self,
        uniform: tuple[Tensor, ...],
        condition: Tensor | None,
        truncation: Truncation | None,
    ) -> tuple[Tensor, ...]:
        """Draw codes by level from uniform numbers, (n, N) each."""
        levels: tuple[Tensor, ...] = ()
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        for i, (one, numbers) in enumerate(zip(self.code_maps, uniform, strict=True)):
            codes = draw_codes(
                cast(CodeNetwork, self.networks_by_level[i]),
                numbers.to(self.device, exact),
                condition,
                self._context(levels),
                truncation,
            )
            levels = *levels, codes.unflatten(1, one.dims)
        return levels


def _autoencoder(given: Any) -> tuple[DiscreteModel, bool, dict[str, Any] | None]:
    """Return an autoencoder, whether it has weights, and the data that it was trained on."""
    if given is None:
        raise ValueError(
            "CodePrior needs a trained autoencoder with codes: give --model.autoencoder "
            "runs/vq_vae/version_0/checkpoints/best.ckpt"
        )
    has_weights, trained_on = True, None
    if isinstance(given, nn.Module):
        made: Any = copy.deepcopy(given).cpu()  # the given one may be trained further
        has_weights = bool(getattr(given, "initialized", True))
    elif str(given).startswith("{"):
        description = json.loads(given)
        made, has_weights = build(description, "the description of the autoencoder"), False
    else:
        record = checkpoint.read(expand(given)).record
        made = load(given)
        if record.data is not None:
            trained_on = {**record.data, "class_names": record.class_names}
    if isinstance(made, CodePrior):
        raise ValueError(
            "a CodePrior cannot be the autoencoder of another prior: give --model.autoencoder the "
            "checkpoint of its autoencoder"
        )
    if not isinstance(made, DiscreteModel):
        raise ValueError(
            f"a {type(made).__name__} has no codes for a prior to be learned over: give "
            "--model.autoencoder the checkpoint of a VQVAE, for example"
        )
    return made, has_weights, trained_on


def _check_fit(made: DiscreteModel, prior: CodePrior) -> None:
    """Check that the autoencoder fits the data."""
    name = type(made).__name__
    if made.image_shape != prior.image_shape:
        raise ValueError(
            f"the autoencoder is of {made.image_shape} images, but the data have "
            f"{prior.image_shape}: use the data that it was trained on"
        )
    if made.bounded != prior.bounded:
        raise ValueError(
            "the autoencoder was trained on data of another scaling: use the data.scaling that it "
            "was trained with"
        )
    if made.conditional and not prior.conditional:
        raise ValueError(
            f"the {name} sees the class of an image, so its prior must see it, too: use "
            "--model.conditional true"
        )
    if made.conditional and made.num_classes != prior.num_classes:
        raise ValueError(
            f"the {name} was trained on {made.num_classes} classes, but the data have "
            f"{prior.num_classes}: use the data that it was trained on"
        )


def _check_autoencoder(module: CodePrior, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse the weights of a prior over the codes of another autoencoder."""
    if not module.has_weights:
        module.has_weights = True
        return
    for name, value in module.autoencoder.state_dict().items():
        held = state_dict.get(f"{prefix}autoencoder.{name}")
        if held is not None and (held.shape != value.shape or not _equal(held, value)):
            raise UserError(
                "the prior was trained on the codes of another autoencoder than the one that "
                f"--model.autoencoder names ({name} differs): leave the option out, or train a new "
                "prior"
            )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two weights are the same, up to the precision of the less precise one."""
    coarse = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(a.to(b.device, coarse), b.to(coarse))
