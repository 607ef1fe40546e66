"""What every variant has in common: steps, logging, optimiser, and the public verbs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from vae_lightning.checkpoint import remember_arguments
from vae_lightning.data.batch import Batch
from vae_lightning.distributed import share_buffers
from vae_lightning.likelihoods import Bernoulli, Likelihood
from vae_lightning.metrics.measure import Mean
from vae_lightning.metrics.result import NATS, Result
from vae_lightning.models.training import Training
from vae_lightning.nets import Decoder, ImageShape
from vae_lightning.randomness import Noise

Labels = Tensor | int | None
"""Classes of images: int64 (B,), one class for all of them, or none."""


@dataclass(frozen=True)
class Terms:
    """The terms of an objective, each with one value per image, (B,).

    Attributes:
        reconstruction: -log p(x|z) in nats, summed over the pixels.
    """

    reconstruction: Tensor

    def named(self) -> dict[str, Tensor]:
        """Every term by the name under which it is logged."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def unit(cls, name: str) -> str:
        """What a term counts."""
        return NATS


class BaseVAE(Training, ABC):
    """A model with an encoder, a decoder and a likelihood. Variants implement the abstract methods.

    What can be called on every trained model: `embed`, `decode`, `reconstruct` and `sample`. These
    run in evaluation mode without gradients, whatever mode the model is in, and take their
    randomness from a generator, so they never disturb a training run.

    Args:
        image_shape: (C, H, W) of the images; the command line takes it from the data.
        num_classes: Classes of the data, 0 if they have no labels; likewise.
        conditional: Whether encoder and decoder see the class of each image.
        likelihood: p(x|z).
        start_at_mean: Whether the decoder's output bias starts at the mean image of the training
            data (for a Bernoulli at its logit), so that no time is spent on learning it. For
            decoders with a bias for each pixel.
        optimizer: Optimiser of all parameters.
        lr_scheduler: Learning-rate scheduler, stepped once per epoch.
        compile: Compile encoder and decoder with ``torch.compile`` before the first batch.
        updates_per_call: Updates of the weights in one call of ``training_step``, for each of which
            Lightning's loop takes its time. By default as many as small images allow, and 1 where
            an option of the trainer counts or treats single batches. The updates are the same
            whatever it is; 1 hands each batch to Lightning and its callbacks.
        skip_non_finite: Leave out an update whose loss or gradient is NaN or infinite, and count
            it, instead of ending the training. On a GPU, every step then waits for the one before.

    Attributes:
        latent_dim: Size of the latent vector, None where the latent is none.
        n_codes: Size of the codebook, None where there is none.
        can_sample: Whether there is a prior to sample from.
        evaluation_seed: Of the noise in validation and test, which does not follow the seed of the
            training.
        results: What the last validation or test reported, by ``stage/name``.

    Raises:
        ValueError: If the model is conditional and the data have no labels, or ``updates_per_call``
            is not positive.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_dim: int | None = None
    n_codes: int | None = None
    can_sample: bool = True

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 0,
        conditional: bool = False,
        likelihood: Callable[[], Likelihood] = Bernoulli,
        start_at_mean: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
        updates_per_call: int | None = None,
        skip_non_finite: bool = False,
    ) -> None:
        super().__init__()
        remember_arguments(self)
        if conditional and num_classes < 1:
            raise ValueError(
                f"{type(self).__name__} is conditional and needs labelled images, but the data "
                "have no classes: use data with labels, or a model that is not conditional"
            )
        channels, height, width = image_shape
        self.image_shape = channels, height, width
        self.num_classes = num_classes
        self.conditional = conditional
        self.likelihood = likelihood()
        self.start_at_mean = start_at_mean
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.check_optimizer()
        self.compile_nets = compile
        if updates_per_call is not None and updates_per_call < 1:
            raise ValueError(f"model.updates_per_call must be at least 1, got {updates_per_call}")
        self.updates_per_call = updates_per_call
        self.skip_non_finite = skip_non_finite
        self.noise_seed = torch.initial_seed()
        self.evaluation_seed = 0
        self.results: dict[str, Result] = {}
        self._started = False
        self._means: dict[str, Mean] = {}
        self._units: dict[str, str] = {}

    # What a variant implements

    @abstractmethod
    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> Terms:
        """The terms of the objective for a batch.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            condition: One-hot classes, (B, num_classes), for conditional models.
            noise: Where every random number of this batch comes from.
        """

    @abstractmethod
    def objective(self, terms: Any) -> Tensor:
        """What is minimised, of the terms that `terms` returned, in nats per image, (B,)."""

    @abstractmethod
    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """What ``vae predict`` writes about the latents of a batch: arrays by name, (B, ...)."""

    @abstractmethod
    def embed(self, x: Tensor, label: Labels = None) -> Tensor:
        """One latent per image, (B, ...), as `decode` takes it; no noise is added."""

    @abstractmethod
    def sample(
        self, n: int, label: Labels = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ``n`` images from the model: the means of p(x|z), (n, C, H, W), in [0, 1].

        Args:
            n: Number of images.
            label: For conditional models: the class of all images or of each, (n,); by default
                the classes take turns: 0, 1, 2, ..., 0, 1, ...
            generator: A CPU generator; by default torch's global one.
        """

    # The other verbs

    def decode(self, z: Tensor, label: Labels = None) -> Tensor:
        """Images of latents: the means of p(x|z), (B, C, H, W), in [0, 1].

        Args:
            z: Latents as `embed` returns them, (B, ...).
            label: The class of all images or of each, (B,), for conditional models.
        """
        with self.inference():
            params = self.decoder(self.place(z), self.condition(label, len(z)))
            return self.likelihood.mean(params)

    def reconstruct(self, x: Tensor, label: Labels = None) -> Tensor:
        """Encode and decode images without noise.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            label: The class of all images or of each, (B,), for conditional models.

        Returns:
            Images in [0, 1], (B, C, H, W).
        """
        return self.decode(self.embed(x, label), label)

    def latent_kl(self, x: Tensor, label: Labels = None) -> Tensor:
        """KL(q(z|x) || p(z)) of each latent dimension in nats, (B, latent_dim).

        Raises:
            RuntimeError: If the latent is no vector with a Gaussian posterior.
        """
        raise RuntimeError(f"a {type(self).__name__} has no Gaussian posterior")

    def codes(self, x: Tensor, label: Labels = None) -> Tensor:
        """Map of the indices of codes, int64, (B, h, w).

        Raises:
            RuntimeError: If the model has no codebook.
        """
        raise RuntimeError(f"a {type(self).__name__} has no codebook")

    def log_marginal(self, batch: Batch, samples: int, rows: int) -> Tensor:
        """Estimates of log p(x), or of log p(x|y) for conditional models, by importance sampling.

        Args:
            batch: Images with their indices, on which the noise depends, and their classes.
            samples: Draws per image.
            rows: Latents decoded at once, at least one per image.

        Returns:
            (B,), nats, float64 where the device has it.

        Raises:
            RuntimeError: If the model has no density.
        """
        raise RuntimeError(f"a {type(self).__name__} has no density of images")

    def evaluation_noise(self, batch: Batch, purpose: str) -> Noise:
        """Noise for measuring, a function of each image's index and of ``evaluation_seed``."""
        return Noise(batch.indices, self.evaluation_seed, purpose)

    # What variants use

    def check_networks(self, features: Sequence[int], latent: Sequence[int]) -> None:
        """Run both networks once on zeros, so that a pair that does not fit is refused at once.

        Args:
            features: The shape that the encoder has to return for an image; 0 for any size.
            latent: The shape of one latent; 0 for what the encoder returned there.

        Raises:
            ValueError: If a network does not take its input or returns another shape.
        """
        channels, height, width = self.image_shape
        label = torch.zeros(1, dtype=torch.int64) if self.conditional else None
        with self.inference():
            condition = self.condition(label, 1)
            try:
                made = self.encoder(torch.zeros(1, channels, height, width), condition).shape[1:]
                if len(made) != len(features) or any(
                    b and a != b for a, b in zip(made, features, strict=True)
                ):
                    raise ValueError(f"the encoder returns {tuple(made)} for an image")
                size = [b or a for a, b in zip(made, latent, strict=True)]
                image = self.decoder(torch.zeros(1, *size), condition).shape[1:]
                if image != (self.likelihood.n_params * channels, height, width):
                    raise ValueError(f"the decoder returns {tuple(image)} for {self.image_shape}")
            except (ValueError, RuntimeError) as error:
                names = type(self.encoder).__name__, type(self.decoder).__name__
                raise ValueError(
                    f"{names[0]} and {names[1]} do not fit a {type(self).__name__} of "
                    f"{self.image_shape} images ({str(error).splitlines()[0]}): choose a pair of "
                    "the same family and sizes"
                ) from error

    def check_images(self, x: Tensor) -> None:
        """Check that ``x`` can be encoded.

        Raises:
            ValueError: If it is not a float tensor (B, C, H, W) of the model's image shape.
        """
        if x.shape[1:] != torch.Size(self.image_shape) or not x.is_floating_point():
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"this {type(self).__name__} takes float images (B, {shape}) with values in "
                f"[0, 1], got {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
            )

    def place(self, x: Tensor) -> Tensor:
        """``x`` on the device and in the floating-point type of the model."""
        return x.to(self.device, cast(torch.dtype, self.dtype))

    def condition(self, label: Labels, n: int) -> Tensor | None:
        """One-hot classes (n, num_classes) for a conditional model, None for another.

        Raises:
            ValueError: If a label is missing, not wanted, out of range, or their number is not n.
        """
        name = type(self).__name__
        if not self.conditional:
            if label is not None:
                raise ValueError(f"this {name} is not conditional: it takes no label")
            return None
        if label is None:
            raise ValueError(
                f"this {name} is conditional: give a label in 0..{self.num_classes - 1}"
            )
        if not isinstance(label, Tensor | int):
            raise ValueError(f"a label must be an integer or a tensor of them, got {label!r}")
        label = torch.as_tensor(label, device=self.device)
        if label.ndim == 0:
            label = label.expand(n)
        if label.shape != (n,):
            raise ValueError(f"{n} images need {n} labels or one, got shape {tuple(label.shape)}")
        if label.is_floating_point() or label.lt(0).any() or label.ge(self.num_classes).any():
            wrong = label.unique().tolist()[:5]
            raise ValueError(f"labels must be integers in 0..{self.num_classes - 1}, got {wrong}")
        return self.place(nn.functional.one_hot(label.long(), self.num_classes))

    def take_turns(self, n: int) -> Tensor | None:
        """Labels 0, 1, 2, ..., 0, 1, ... for ``n`` samples of a conditional model."""
        return torch.arange(n) % self.num_classes if self.conditional else None

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; the mode of every submodule is put back after."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training

    # Lightning

    def setup(self, stage: str) -> None:
        """Start at the mean image and compile the networks, if asked for.

        Never the module itself is compiled: its logging breaks.
        """
        super().setup(stage)
        if stage == "fit" and self.start_at_mean and not self._started:
            self._started = True
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            if not hasattr(data, "mean_image"):
                raise ValueError(
                    "start_at_mean needs data with a method mean_image, as those of this project"
                )
            # The weights of a checkpoint that is resumed are loaded after this.
            params = self.likelihood.params_at(data.mean_image())
            cast(Decoder, self.decoder).start_at(self.place(params))
        if self.compile_nets:
            self.encoder.compile()
            self.decoder.compile()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add the terms of a batch to the sums over the validation images."""
        self._add(self.per_image(batch, "val", batch_idx, self.evaluation_seed))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add the terms of a batch to the sums over the test images."""
        self._add(self.per_image(batch, "test", batch_idx, self.evaluation_seed))

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self._means, self.results = {}, {}
        # Each process has measured these on its own images, and those of the first are saved.
        # Lightning shares them only where each call of training_step is one update.
        share_buffers(self)

    def on_test_epoch_start(self) -> None:
        """Forget the test before."""
        self._means, self.results = {}, {}

    def on_validation_epoch_end(self) -> None:
        """Report the means over all images under ``val/``."""
        self.report_means("val")
        if self.trainer.sanity_checking:  # of a few images, before anything is learnt
            self.results = {}

    def on_test_epoch_end(self) -> None:
        """Report the means over all images under ``test/``."""
        self.report_means("test")

    def report(self, stage: str, name: str, result: Result) -> None:
        """Keep a result of an evaluation in `results`, and log its numbers."""
        self.results[f"{stage}/{name}"] = result
        numbers = result.value if isinstance(result.value, list) else [result.value]
        for i, number in enumerate(numbers):
            if isinstance(number, int | float):
                key = f"{stage}/{name}" + (f"/{i}" if numbers is result.value else "")
                # Every process has the same number; sync_dist only keeps Lightning from warning.
                value = torch.tensor(float(number), device=self.device)
                self.log(key, value, prog_bar=name == "loss", sync_dist=True)

    @property
    def bound_unit(self) -> str:
        """Unit of bounds of log p(x), or of log p(x|y)."""
        return f"{NATS} given its class" if self.conditional else NATS

    @property
    def is_normalised(self) -> bool:
        """Whether the likelihood is one: a Bernoulli of grey pixels is only a cross-entropy."""
        data = getattr(self._trainer, "datamodule", None)
        return not self.likelihood.binary or getattr(data, "is_binary", False)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Reconstructions and latents of a batch, by name, each (B, ...)."""
        batch = Batch.of(batch)
        return {
            "reconstruction": self.reconstruct(batch.x, self.label_of(batch)),
            **self.encode(batch.x, self.one_hot(batch)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Training.on_load_checkpoint`; a trained decoder has left the mean image."""
        super().on_load_checkpoint(checkpoint)
        self._started = True

    def one_hot(self, batch: Batch) -> Tensor | None:
        """As `condition`, without its checks: they would make a GPU wait in every step."""
        if not self.conditional:
            return None
        return self.place(nn.functional.one_hot(self.labels(batch), self.num_classes))

    def label_of(self, batch: Batch) -> Tensor | None:
        """The classes of a batch for a conditional model, None for another, which takes none."""
        return self.labels(batch) if self.conditional else None

    def labels(self, batch: Batch) -> Tensor:
        """The classes of a batch, which a conditional model needs.

        Raises:
            ValueError: If it has none.
        """
        if batch.y is None:
            raise ValueError(f"{type(self).__name__} is conditional, but the batch has no labels")
        return batch.y

    def indexed(self, batch: Any, step: int) -> Batch:
        """A batch whose images have an index, whatever data module it is from."""
        if not isinstance(batch, Batch):
            self.check_images(Batch.of(batch).x)
        # Batches without indices get some that no other step or process has.
        rank = self.trainer.global_rank if self._trainer else 0
        return Batch.of(batch, first_index=(rank << 48) + (step << 20))

    def per_image(self, batch: Any, stage: str, step: int, seed: int) -> dict[str, Tensor]:
        """The objective and its terms by name, one value per image, each (B,)."""
        batch = self.indexed(batch, step)
        noise = self.noise_of(batch.indices, stage, step, seed)
        terms = self.terms(batch.x, self.one_hot(batch), noise)
        named = terms.named()
        self._units = {name: terms.unit(name) for name in named}
        return {"loss": self.objective(terms), **named}

    def _add(self, per_image: dict[str, Tensor]) -> None:
        for name, value in per_image.items():
            self._means.setdefault(name, Mean()).update(value)

    def report_means(self, stage: str) -> None:
        """Report the means of the terms over the images of all processes.

        Lightning's own mean is off when processes see different numbers of images: it averages
        these numbers as integers.
        """
        others, self.results = self.results, {}
        for name, mean in self._means.items():
            # The parts of a bound are no log-probabilities themselves.
            is_bound = name.startswith("negative_")
            unit = self.bound_unit if is_bound else self._units.get(name, "as trained on")
            result = mean.result(unit, normalised=is_bound and self.is_normalised)
            self.report(stage, name, result)
        self.results.update(others)  # the means come first
