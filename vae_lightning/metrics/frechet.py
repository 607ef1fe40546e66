"""Fréchet distance of samples."""

from typing import Any

import torch
from torch import Tensor

from vae_lightning import distributed, explore
from vae_lightning.batch import Batch
from vae_lightning.errors import UserError
from vae_lightning.explore.frechet import frechet_metric
from vae_lightning.metrics.base import Metric
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.loading import load_classifier
from vae_lightning.randomness import derive_seed
from vae_lightning.results import Result
from vae_lightning.training.module import LitVAE
from vae_lightning.training.training_images import DataModuleImages

_CHUNK = 250
"""Number of images generated from one seed, so that processes can share the work."""


class FrechetDistance(Metric):
    """Fréchet distance between as many samples as there are test images, and these images.

    The features are those of a classifier of the same data (``vae fit --config classifier``), never
    of another data set. The metric also reports a floor, the distance between training and test
    images. Both are biased upward, less so for more images: compare equal numbers of images and one
    classifier.

    Samples are the means of p(x|z). On binarized images their pixels are drawn, because gray means
    would be told apart from binary images by their grayness alone. A conditional model samples each
    class as often as it occurs.

    Args:
        classifier: Checkpoint of a `Classifier`; without one, the metric is not computed.

    References:
        Heusel et al. (2017), GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium, https://arxiv.org/abs/1706.08500
    """

    name = "frechet"
    requires = (Capability.SAMPLES,)

    def __init__(self, classifier: str | None = None) -> None:
        super().__init__()
        self.classifier = classifier

    def applies_to(self, model: GenerativeModel, data: Any) -> bool:
        """Return whether there is a classifier, and the model has samples."""
        return self.classifier is not None and super().applies_to(model, data)

    def start(self, module: LitVAE) -> None:
        """See `Metric.start`; loads the classifier.

        Raises:
            UserError: If it cannot be loaded, or was trained on images of another shape.
        """
        assert self.classifier is not None
        self.network = load_classifier(self.classifier, module.device)
        shape, wanted = self.network.image_shape, module.model.image_shape
        if shape != wanted:
            raise UserError(
                f"--metrics.frechet.classifier {self.classifier} takes images of {shape}, but the "
                f"model's are {wanted}: train one on the same data"
            )
        device = "cpu" if module.device.type == "mps" else module.device
        size = self.network.num_features
        self.distance, self.floor = (frechet_metric(size).to(device) for _ in range(2))
        self.counts = torch.zeros(max(1, module.model.num_classes), dtype=torch.int64)

    def update(self, module: LitVAE, batch: Batch) -> None:
        """See `Metric.update`."""
        self._add(batch.x, (self.distance, self.floor), real=True)
        y = batch.y.cpu() if module.model.needs_labels and batch.y is not None else None
        classes = torch.zeros(len(batch.x), dtype=torch.int64) if y is None else y
        self.counts += classes.bincount(minlength=len(self.counts))

    def compute(self, module: LitVAE) -> dict[str, Result]:
        """See `Metric.compute`."""
        counts = distributed.total(self.counts.to(module.device)).cpu()
        n = int(counts.sum())
        label = torch.arange(len(counts)).repeat_interleave(counts)
        binary = getattr(self.data, "is_binary", False)
        for i in self._own_chunks(module, n):
            here = label[i * _CHUNK : (i + 1) * _CHUNK]
            samples = explore.sample(
                module.vae,
                len(here),
                module.vae.used_labels(here),
                draw=binary,
                seed=derive_seed(module.evaluation_seed, "frechet", i),
            )
            self._add(samples, (self.distance,), real=False)
        self.data.setup("fit")  # loads the training images
        trained_on = DataModuleImages(module.trainer).random_images(n, module.evaluation_seed)
        for i in self._own_chunks(module, n):
            self._add(trained_on[i * _CHUNK : (i + 1) * _CHUNK], (self.floor,), real=False)
        unit = f"{n:,} samples against {n:,} images, {self.network.num_features} features"
        floor = f"{len(trained_on):,} training images against the same"
        return {
            "frechet_distance": Result(self.distance.compute().item(), unit),
            "frechet_distance_floor": Result(self.floor.compute().item(), floor),
        }

    def _own_chunks(self, module: LitVAE, n: int) -> range:
        """Return the numbers of the chunks of ``n`` images that this process takes."""
        trainer = module.trainer
        return range(trainer.global_rank, -(-n // _CHUNK), trainer.world_size)

    def _add(self, x: Tensor, metrics: tuple[Any, ...], real: bool) -> None:
        """Add images to accumulators."""
        for part in x.split(_CHUNK):
            features = self.network.features(part)
            for metric in metrics:
                metric.update(features.to(metric.device).double(), real=real)
