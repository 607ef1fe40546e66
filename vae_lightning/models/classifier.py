"""Classifier whose features the Fréchet distance compares images by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import ImageModel, ObjectiveTerms
from vae_lightning.nets import ConvEncoder, Encoder, ImageShape
from vae_lightning.randomness import Noise
from vae_lightning.results import NATS


@dataclass(frozen=True)
class ClassifierTerms(ObjectiveTerms):
    """What is reported of a classifier, each (B,).

    Attributes:
        cross_entropy: -log p(y|x) in nats.
        accuracy: 1 where the most probable class is the right one, else 0.
    """

    cross_entropy: Tensor
    accuracy: Tensor

    @classmethod
    def unit(cls, name: str) -> str:
        """See `ObjectiveTerms.unit`."""
        return NATS if name == "cross_entropy" else "of the images"


class Classifier(ImageModel):
    """Convolutional classifier, trained by cross-entropy: p(y|x), and features of images.

    It is no generative model. Samples of the generative ones are measured by its features, see
    `vae_lightning.metrics.frechet.FrechetDistance`.

    Args:
        features: Size of the feature vector, the input of the last layer.
        encoder: Network from images to the feature vector.
        **kwargs: See `ImageModel`.

    Raises:
        ValueError: If ``features`` is not positive, the encoder returns something else, or the data
            have no classes.

    Example:
        >>> model = Classifier(features=16, num_classes=10)
        >>> model.features(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        features: int = 128,
        encoder: Callable[[ImageShape, int, int], Encoder] = ConvEncoder,
        **kwargs: Any,
    ) -> None:
        super().__init__(conditional=True, **kwargs)
        if features < 1:
            raise ValueError(f"features must be positive, got {features}")
        self.num_features = features
        self.encoder = encoder(self.image_shape, features, 0)
        self.head = nn.Linear(features, self.num_classes)
        with self.inference():
            made = tuple(self.encoder(torch.zeros(1, *self.image_shape), None).shape[1:])
        if made != (features,):
            raise ValueError(
                f"{type(self.encoder).__name__} returns {made} for an image, and a Classifier "
                f"needs ({features},): choose an encoder of vectors"
            )

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `ImageModel.capabilities`; none of them is about classification."""
        return frozenset()

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> ClassifierTerms:
        """See `ImageModel.terms`; the condition is what the classifier learns to predict."""
        assert condition is not None
        logits = self.head(self.encoder(self.to_device_dtype(x), None).relu()).float()
        label = condition.argmax(1)
        return ClassifierTerms(
            functional.cross_entropy(logits, label, reduction="none"),
            logits.argmax(1).eq(label).float(),
        )

    def objective(self, terms: Any) -> Tensor:
        """Return the cross-entropy, (B,)."""
        assert isinstance(terms, ClassifierTerms)
        return terms.cross_entropy

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images (B, C, H, W) in [0, 1]: not negative, (B, num_features)."""
        self.check_images(x)
        with self.inference():
            features: Tensor = self.encoder(self.to_device_dtype(x), None).relu()
        return features

    def classify(self, x: Tensor) -> Tensor:
        """Return p(y|x) of images (B, C, H, W) in [0, 1], (B, num_classes)."""
        with self.inference():
            probabilities: Tensor = self.head(self.features(x)).float().softmax(1)
        return probabilities

    def predict(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Return ``probabilities``, (B, num_classes), and the most probable class, ``predicted``.

        The label is not needed.
        """
        probabilities = self.classify(x)
        return {"probabilities": probabilities, "predicted": probabilities.argmax(1)}
