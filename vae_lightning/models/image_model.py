"""The base of every model that can be trained: its images, its objective, what it can do.

A model is a plain ``nn.Module``: mathematics and inference. `vae_lightning.training` trains it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vae_lightning.data_record import DataRecord
from vae_lightning.distributions.priors import TrainingImages
from vae_lightning.models.capabilities import Capability, MissingCapabilityError
from vae_lightning.nets import Decoder, Encoder, ImageShape
from vae_lightning.randomness import Noise
from vae_lightning.results import NATS
from vae_lightning.schedules import Scheduled
from vae_lightning.settings import Configurable

_OVERSHOOT = 1e-3

Labels = Tensor | int | None
"""Classes of images: int64 (B,), one class for all of them, or none."""


@dataclass(frozen=True)
class ObjectiveTerms:
    """The terms of an objective: per image (B,), or of the whole batch ()."""

    batch_dependent: ClassVar[frozenset[str]] = frozenset()
    """Names of terms whose values depend on the other images of the batch."""
    evaluation_only: ClassVar[frozenset[str]] = frozenset()
    """Names of terms that are not computed in training."""

    def as_dict(self) -> dict[str, Tensor]:
        """Return every term by the name under which it is logged."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}

    def code_indices(self) -> dict[str, Tensor]:
        """Return the indices chosen from each codebook, int64, by the name of the codebook."""
        return {}

    @classmethod
    def unit(cls, name: str) -> str:
        """Return the unit of a term."""
        return NATS


class ImageModel(Configurable, nn.Module, Scheduled, ABC):
    """A model of images that `vae_lightning.training.module.LitVAE` can train.

    Args:
        image_shape: (C, H, W) of the images. The command line takes it from the data.
        num_classes: Number of classes of the data, 0 without labels. Taken from the data, too.
        conditional: Whether the model sees the class of each image.
        bounded: Whether values are in [0, 1]; if not, they are any real numbers. Taken from the
            data, too.

    Attributes:
        record: What is known of the data that the model was trained on, None if nothing is.
        initialized: Whether the model has been trained, or initialized from data.
        critic: Network with an optimizer of its own, such as a discriminator, or None.

    Raises:
        ValueError: If the model is conditional and the data have no labels.
        TypeError: If an argument cannot be stored in a checkpoint as plain data.
    """

    initialized: bool = False
    critic: nn.Module | None

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 0,
        conditional: bool = False,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        _ = self.settings  # refuses at once what a checkpoint could not hold
        if conditional and num_classes < 1:
            raise ValueError(
                f"{type(self).__name__} is conditional and needs labeled images, but the data "
                "have no classes: use data with labels, or a model that is not conditional"
            )
        channels, height, width = image_shape
        self.image_shape = channels, height, width
        self.num_classes = num_classes
        self.conditional = conditional
        self.bounded = bounded
        self.record: DataRecord | None = None
        self.register_module("critic", None)
        self.register_load_state_dict_post_hook(_mark_initialized)

    # What a model implements

    @abstractmethod
    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> ObjectiveTerms:
        """Compute the terms of the objective for a batch.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            condition: One-hot classes, (B, num_classes), of a conditional model.
            noise: Source of every random number.
        """

    @abstractmethod
    def objective(self, terms: Any) -> Tensor:
        """Return what is minimized, in nats per image.

        Args:
            terms: What `terms` returned.

        Returns:
            (B,). A term of the whole batch, (), is simply added: the mean over the batch leaves it
            as it is.
        """

    def critic_objective(self, terms: Any) -> Tensor:
        """Return what the critic minimizes, (B,) or (); only for models with a critic.

        Args:
            terms: What `terms` returned. The critic's loss must see detached inputs; the model's
                loss calls `frozen_critic`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define critic_objective")

    @property
    @abstractmethod
    def capabilities(self) -> frozenset[Capability]:
        """What this model can do."""

    @abstractmethod
    def predict(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Return what ``vae predict`` writes about a batch, by name, each (B, ...).

        Args:
            x: Images in [0, 1], (B, C, H, W).
            label: Their classes, (B,), None without labels.
        """

    # What training uses

    def init_from_data(self, images: TrainingImages) -> None:
        """Initialize what depends on the training images; called before the first update."""

    def frozen_features(self, x: Tensor, condition: Tensor | None) -> Tensor | None:
        """Return what `terms` takes instead of images, computed once by networks that do not learn.

        Training then computes it before the first epoch, unless images change between epochs.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            condition: One-hot classes, (B, num_classes), of a conditional model.

        Returns:
            (B, ...), of any type but uint8; None if the model is trained on images.
        """
        return None

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that ``torch.compile`` may compile."""
        return [net for net in self.children() if isinstance(net, Encoder | Decoder)]

    def unsharded_parameters(self) -> list[nn.Parameter]:
        """Parameters that FSDP must not shard: scalars, which it refuses to cut."""
        return [parameter for parameter in self.parameters() if parameter.ndim == 0]

    def is_normalized(self, binary: bool) -> bool:
        """Return whether bounds of log p(x) are bounds of a density or a probability.

        Args:
            binary: Whether the pixels of the data are 0 or 1.
        """
        return True

    def unit_of(self, terms: ObjectiveTerms, name: str) -> str:
        """Return the unit of a term."""
        return terms.unit(name)

    @property
    def bound_unit(self) -> str:
        """Unit of bounds of log p(x), or of log p(x|y)."""
        return f"{NATS} given its class" if self.needs_labels else NATS

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """The vectors of the codes, (K, D), by the names in `Terms.code_indices`."""
        return {}

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """Numbers of codes of the codebooks."""
        return {name: len(vectors) for name, vectors in self.codebooks.items()}

    def frozen_critic(self, *args: Tensor | None) -> Any:
        """Call the critic with detached parameters: gradients reach the arguments only."""
        assert self.critic is not None
        named = {**dict(self.critic.named_parameters()), **dict(self.critic.named_buffers())}
        frozen = {name: value.detach() for name, value in named.items()}
        return torch.func.functional_call(self.critic, frozen, args)

    # Capabilities

    def has(self, *capabilities: Capability) -> bool:
        """Return whether the model has all of these capabilities."""
        return self.capabilities.issuperset(capabilities)

    def require(self, capability: Capability) -> None:
        """Check that the model has a capability.

        Raises:
            MissingCapabilityError: If it does not.
        """
        if not self.has(capability):
            raise self.missing(capability)

    def missing(self, capability: Capability) -> MissingCapabilityError:
        """Return the error for a capability that the model does not have."""
        return MissingCapabilityError(type(self).__name__, capability, self.instead_of(capability))

    def instead_of(self, capability: Capability) -> str:
        """Return what to do where a capability is missing, as a clause; "" if nothing is known."""
        return ""

    # Inputs

    def check_images(self, x: Tensor, values: bool = True) -> None:
        """Check that ``x`` can be encoded.

        Args:
            x: Images.
            values: Check the range of the pixels, for which a GPU has to be waited for.

        Raises:
            ValueError: If it is not a float tensor (B, C, H, W) of the model's image shape, or has
                values outside [0, 1], or of an unbounded model NaN or infinite values.
        """
        _check_images(x, self, values)

    def check_inputs(self, x: Tensor, values: bool = True) -> None:
        """Check what `terms` takes, images or `frozen_features`, like `check_images`."""
        self.check_images(x, values)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the networks. Other parts may keep float32."""
        networks = (part for part in self.children() if isinstance(part, Encoder | Decoder))
        of_networks = (p for network in networks for p in network.parameters())
        return next(of_networks, next(self.parameters())).dtype

    def to_device_dtype(self, x: Tensor) -> Tensor:
        """Move ``x`` to the device and the floating-point type of the networks."""
        return x.to(self.device, self.dtype)

    def encode_labels(self, label: Labels, n: int, validate: bool = True) -> Tensor | None:
        """Return one-hot classes, (n, num_classes), for a conditional model, None for another.

        Args:
            label: The class of all images or of each, (n,). A model that does not need labels takes
                None for unknown classes, and without validation -1: their rows are 0.
            n: Number of images.
            validate: Check the values, for which a GPU has to be waited for.

        Raises:
            ValueError: If a label is missing, unwanted, out of range, or their number is not n.
        """
        name = type(self).__name__
        if not self.conditional:
            if label is not None:
                raise ValueError(f"this {name} is not conditional: it takes no label")
            return None
        if label is None and not self.needs_labels:
            return self.to_device_dtype(torch.zeros(n, self.num_classes))
        if label is None:
            raise ValueError(
                f"this {name} is conditional: give a label in 0..{self.num_classes - 1}"
            )
        one_hot = _one_hot(
            label, n, self.num_classes, self.device, validate, unknown=not self.needs_labels
        )
        return self.to_device_dtype(one_hot)

    @property
    def needs_labels(self) -> bool:
        """Whether every image has to come with its class.

        A conditional model that does not need them learns from those that are known, and infers the
        class of other images.
        """
        return self.conditional

    def check_labels(self, num_labels: int | None) -> None:
        """Check that the model can be trained on data of which few labels are shown.

        Args:
            num_labels: Number of training images with a label, None if all have one, or none.

        Raises:
            ValueError: If the model needs all labels, or uses none.
        """
        if num_labels is None or (self.conditional and not self.needs_labels):
            return
        name, shown = type(self).__name__, f"data.num_labels {num_labels}"
        if self.needs_labels:
            raise ValueError(
                f"{name} needs the class of every image, but {shown} hides most of them: leave it "
                "out, or choose a semi-supervised model"
            )
        raise ValueError(f"{shown} has no effect on {name}, which uses no labels: leave it out")

    def used_labels(self, label: Tensor | None) -> Tensor | None:
        """Return the labels if the model needs them, else None, for data that have labels."""
        return label if self.needs_labels else None

    def labels_for(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        """Return the classes with which images are encoded and their latents decoded.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            label: Their classes, (B,), where the data have any.

        Returns:
            Those that the data have if the model needs them, those that it infers, or None.
        """
        return self.used_labels(label)

    def cycle_labels(self, n: int) -> Tensor | None:
        """Return labels 0, 1, 2, ..., 0, 1, ... for ``n`` samples of a conditional model."""
        return torch.arange(n) % self.num_classes if self.conditional else None

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Switch to evaluation mode without gradients; restore the mode of every submodule."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training


def _mark_initialized(module: Any, incompatible_keys: Any) -> None:
    """Note that weights were loaded, which `BaseVAE.init_from_data` must not replace."""
    module.initialized = True


def _check_images(x: Tensor, model: ImageModel, values: bool) -> None:
    """See `ImageModel.check_images`."""
    shape = ", ".join(map(str, model.image_shape))
    kind = "values in [0, 1]" if model.bounded else "finite values"
    takes = f"this {type(model).__name__} takes float images (B, {shape}) with {kind}"
    if x.shape[1:] != torch.Size(model.image_shape) or not x.is_floating_point():
        raise ValueError(f"{takes}, got {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}")
    if not values or not x.numel():
        return
    low, high = (bound.item() for bound in x.detach().aminmax())
    if not model.bounded:
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"{takes}, got NaN or infinite values: remove or replace them")
    # Written so that NaN is refused too; interpolation may overshoot a little.
    elif not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        hint = "divide them by 255" if 1 < high <= 255 and low >= 0 else "scale them"
        raise ValueError(f"{takes}, got values from {low:.4g} to {high:.4g}: {hint}")


def _one_hot(
    label: Tensor | int,
    n: int,
    num_classes: int,
    device: torch.device,
    validate: bool,
    unknown: bool,
) -> Tensor:
    """Return one-hot classes, (n, num_classes), 0 for -1 where classes may be unknown."""
    if not isinstance(label, Tensor | int):
        raise ValueError(f"a label must be an integer or a tensor of them, got {label!r}")
    label = torch.as_tensor(label, device=device)
    if label.ndim == 0:
        label = label.expand(n)
    if label.shape != (n,):
        raise ValueError(f"{n} images need {n} labels or one, got shape {tuple(label.shape)}")
    if validate and (label.is_floating_point() or label.lt(0).any() or label.ge(num_classes).any()):
        wrong = label.unique().tolist()[:5]
        raise ValueError(f"labels must be integers in 0..{num_classes - 1}, got {wrong}")
    if unknown:
        known = label.ge(0)[:, None]
        return nn.functional.one_hot(label.long().clamp(min=0), num_classes) * known
    return nn.functional.one_hot(label.long(), num_classes)
