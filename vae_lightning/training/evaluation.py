"""The part of the LightningModule that updates no weights: validate, test and predict."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from vae_lightning.batch import Batch
from vae_lightning.distributed import share_buffers
from vae_lightning.models.image_model import ImageModel, ObjectiveTerms
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.part_checks import bases_named, check_objective
from vae_lightning.randomness import Noise
from vae_lightning.results import Mean, Result
from vae_lightning.training.code_usage import CodeUsage
from vae_lightning.training.strategies import full_weights


class EvaluationModule(pl.LightningModule):
    """Validate, test and predict with a model.

    Args:
        model: The model.

    Attributes:
        evaluation_seed: Seed of the noise in validation and test, independent of the training's.
        results: What the last validation or test reported, by ``stage/name``.
    """

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model = model
        self.evaluation_seed = 0
        self.results: dict[str, Result] = {}
        self._means: dict[str, Mean] = {}
        self._units: dict[str, str] = {}
        self._evaluation_codes = CodeUsage()

    @property
    def vae(self) -> GenerativeModel:
        """The model, for what only an autoencoder can do."""
        assert isinstance(self.model, GenerativeModel)
        return self.model

    # Batches and noise

    def evaluate_terms(
        self, batch: Any, stage: str, step: int, seed: int
    ) -> tuple[ObjectiveTerms, Tensor]:
        """Compute the terms of a batch and the objective, (B,).

        Args:
            batch: Images, (images, labels) or a `Batch`.
            stage: ``train``, ``val`` or ``test``.
            step: Number of the batch.
            seed: Seed of the noise.
        """
        batch = self.with_indices(batch, step)
        noise = self.noise_of(batch.indices, stage, step, seed)
        condition = self.condition(batch, of_terms=True)
        with bases_named(self.model):
            terms = self.model.terms(batch.x, condition, noise)
            objective = self.model.objective(terms)
        check_objective(self.model, objective, len(batch.x))
        return terms, objective

    def noise_of(self, indices: Tensor, stage: str, step: int, seed: int) -> Noise:
        """Return the noise of a batch with these images, (B,).

        In evaluation it must not depend on the batch that an image happens to be in.
        """
        return Noise(indices, seed, stage, 0, batch=step)

    def evaluation_noise(self, batch: Batch, purpose: str) -> Noise:
        """Return noise for measuring: a function of each image's index and `evaluation_seed`."""
        return Noise(batch.indices, self.evaluation_seed, purpose)

    def with_indices(self, batch: Any, step: int) -> Batch:
        """Convert a batch of any data module to a `Batch`, whose images have an index.

        The values of the first batch are checked, for which a GPU waits once.
        """
        if not isinstance(batch, Batch) or step == 0:
            self.model.check_inputs(Batch.of(batch).x, values=step == 0)
        # Batches without indices get some that no other step or process has.
        rank = self.trainer.global_rank if self.is_attached else 0
        return Batch.of(batch, first_index=(rank << 48) + (step << 20))

    def condition(self, batch: Batch, of_terms: bool = False) -> Tensor | None:
        """Return the one-hot classes of a batch for a conditional model, None for another.

        Args:
            batch: Images with their labels.
            of_terms: Whether a model that does not need labels gets those that are known. Otherwise
                all classes are unknown to it, so that labels are not used to measure it.

        Raises:
            ValueError: If a model that needs labels gets a batch without.
        """
        if self.model.needs_labels and batch.y is None:
            name = type(self.model).__name__
            raise ValueError(f"{name} is conditional, but the batch has no labels")
        label = batch.y if of_terms and self.model.conditional else self.model.used_labels(batch.y)
        # Checking the values would make a GPU wait in every step.
        return self.model.encode_labels(label, len(batch.x), validate=False)

    @property
    def is_attached(self) -> bool:
        """Whether the module belongs to a trainer."""
        try:
            return self.trainer is not None
        except RuntimeError:
            return False

    # Evaluation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add the terms of a batch to the sums over the validation images."""
        self._add(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add the terms of a batch to the sums over the test images."""
        self._add(batch, "test", batch_idx)

    def _add(self, batch: Any, stage: str, batch_idx: int) -> None:
        terms, objective = self.evaluate_terms(batch, stage, batch_idx, self.evaluation_seed)
        named = terms.as_dict()
        self._units = {name: self.model.unit_of(terms, name) for name in named}
        joint = {name for name, value in named.items() if value.ndim == 0} | terms.batch_dependent
        for name, value in {"loss": objective, **named}.items():
            independent = name not in joint and not (joint and name == "loss")
            self._means.setdefault(name, Mean()).update(value, len(objective), independent)
        self._evaluation_codes.update(terms.code_indices(), self.model.codebook_sizes)

    def on_validation_epoch_start(self) -> None:
        """Forget the validation before."""
        self._forget()
        # Each process has updated these from its own images, and those of the first are saved.
        # Lightning shares them only where each call of training_step is one update.
        share_buffers(self)

    def on_test_epoch_start(self) -> None:
        """Forget the test before."""
        self._forget()

    def _forget(self) -> None:
        self._means, self.results, self._evaluation_codes = {}, {}, CodeUsage()

    def on_validation_epoch_end(self) -> None:
        """Report the means over all images under ``val/``."""
        self.report_means("val")
        if self.trainer.sanity_checking:  # a few images, before anything is learned
            self.results = {}

    def logged_names(self) -> list[str]:
        """Return the names of what validation and training log."""
        shape, labels = self.model.image_shape, torch.zeros(2, dtype=torch.long)
        images = torch.zeros(2, *shape), labels, torch.arange(2)
        usage, precision = CodeUsage(), self.trainer.precision_plugin
        batch = precision.convert_input(Batch(*(x.to(self.device) for x in images)))
        with self.model.inference(), precision.forward_context(), full_weights(self.trainer):
            terms, _ = self.evaluate_terms(batch, "val", 1, 0)
        usage.update(terms.code_indices(), self.model.codebook_sizes)
        names = ["loss", *terms.as_dict()]
        validated = [f"val/{name}" for name in [*names, *usage.results(images=2)]]
        trained = [name for name in names if name not in terms.evaluation_only]
        return [*validated, *(f"train/{name}" for name in [*trained, *usage.results()])]

    def on_test_epoch_end(self) -> None:
        """Report the means over all images under ``test/``."""
        self.report_means("test")

    def report_means(self, stage: str) -> None:
        """Report the means of the terms over the images of all processes, and codebook usage.

        Lightning's own mean is wrong when processes see different numbers of images: it averages
        these numbers as integers.
        """
        others = list(self.results)
        for name, mean_of in self._means.items():
            # The parts of a bound are no log-probabilities themselves.
            is_bound = name.startswith("negative_")
            unit = self.model.bound_unit if is_bound else self._units.get(name, "as trained on")
            self.report(stage, name, mean_of.result(unit, is_bound and self.is_normalized))
        images = self.results[f"{stage}/loss"].images if self._means else None
        for name, result in self._evaluation_codes.results(images).items():
            self.report(stage, name, result)
        for key in others:  # after the means
            self.results[key] = self.results.pop(key)

    def report(self, stage: str, name: str, result: Result) -> None:
        """Keep a result of an evaluation in `results`, and log its numbers."""
        if f"{stage}/{name}" in self.results:
            raise ValueError(
                f"two results of this evaluation are named {name}: let the metric of yours return "
                "another name"
            )
        self.results[f"{stage}/{name}"] = result
        numbers = result.value if isinstance(result.value, list) else [result.value]
        for i, number in enumerate(numbers):
            if isinstance(number, int | float):
                key = f"{stage}/{name}" + (f"/{i}" if numbers is result.value else "")
                # Every process has the same number; sync_dist only keeps Lightning from warning.
                value = torch.tensor(float(number), device=self.device)
                self.log(key, value, prog_bar=name == "loss", sync_dist=True)

    @property
    def is_normalized(self) -> bool:
        """Whether bounds are bounds of a log-likelihood, see `ImageModel.is_normalized`."""
        data = getattr(self.trainer, "datamodule", None) if self.is_attached else None
        return self.model.is_normalized(binary=getattr(data, "is_binary", False))

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return what the model says about a batch, by name, each (B, ...)."""
        batch = Batch.of(batch)
        return self.model.predict(batch.x, batch.y)
