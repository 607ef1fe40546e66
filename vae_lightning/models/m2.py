"""M2 (Kingma et al., 2014), https://arxiv.org/abs/1406.5298."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vae_lightning.distributed import gather_rows, join_rows
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.models.vae import VAE, ELBOTerms
from vae_lightning.nets import ConvEncoder, Encoder, ImageShape
from vae_lightning.randomness import Noise
from vae_lightning.results import NATS


@dataclass(frozen=True)
class M2Terms(ELBOTerms):
    """The terms of the bound of log p(x), or of log p(x, y) where the class is known, each (B,).

    Attributes:
        reconstruction: -log p(x|z, y) in nats, the mean over q(y|x).
        kl: KL of (z, y) from the prior in nats: the mean of KL(q(z|x, y) || p(z)) over q(y|x), and
            ``kl_class``.
        kl_class: KL(q(y|x) || p(y)) in nats; log K where one of K classes is known.
        class_cross_entropy: -log q(y|x) in nats: in training the mean over the images of the
            joined batch whose class is known, (); in evaluation of each image, (B,), None if
            classes are unknown.
        accuracy: 1 where the most probable class is the right one, else 0; None in training, or if
            classes are unknown.
        weight: Weight of the bound of each image in training, (B,).
    """

    kl_class: Tensor
    class_cross_entropy: Tensor | None = None
    accuracy: Tensor | None = None
    weight: Tensor | None = None

    batch_dependent = frozenset()
    evaluation_only = frozenset({"accuracy"})

    def as_dict(self) -> dict[str, Tensor]:
        """Return the terms and the bound, without the weights."""
        return {name: value for name, value in super().as_dict().items() if name != "weight"}

    @classmethod
    def unit(cls, name: str) -> str:
        """See `Terms.unit`."""
        return "of the images" if name == "accuracy" else NATS


class M2(VAE):
    r"""Semi-supervised VAE: learns to classify from few labels and many unlabeled images.

    The class y is a latent variable, which is known for some images. The model is
    :math:`p(y) \, p(z) \, p(x|z, y)` with equal p(y), the posterior :math:`q(y|x) \, q(z|x, y)`.
    With the bound

    .. math:: L(x, y) = E_{q(z|x, y)}[-\log p(x|z, y)] + KL(q(z|x, y) \| p(z)) - \log p(y)

    of :math:`-\log p(x, y)`, the objective is the mean over the training images of L(x, y) where
    the class is known, and elsewhere of

    .. math:: U(x) = \sum_y q(y|x) \, (L(x, y) + \log q(y|x)),

    plus ``alpha`` times the mean of :math:`-\log q(y|x)` over the images whose class is known. The
    sum over the classes is exact, so an unlabeled image costs as much as one image per class.

    Use it with ``--data.num_labels``, which shows the labels of so many training images. Batches
    then hold more labeled images than the data do, and each kind of image is weighted by its share
    in the data: the objective is estimated without bias, as long as every batch has both kinds.
    With few labels it takes hundreds of epochs until the decoder depends on the class. A larger
    ``labeled_share`` and ``alpha`` are biased, and much faster (``configs/m2.yaml``).

    In evaluation, classes are unknown: the bound is U(x), log p(x) is the logarithm of the sum of
    :math:`p(y) \, p(x|y)`, images are encoded and reconstructed with their most probable class, and
    labels serve to measure ``accuracy`` and ``class_cross_entropy`` only.

    Args:
        alpha: Weight of the cross-entropy. The paper has ``0.1 N`` for the sum over N images, which
            is 0.1 here.
        labeled_share: Weight of the labeled images in the mean of the bounds, from 0 to 1; by
            default their share in the data.
        classifier: Network from images to the logits of q(y|x).
        num_labeled: Number of training images whose class is known, for ``labeled_share``; if it is
            0, all images of a batch weigh alike. The command line takes it from the data.
        num_train: Number of training images. The command line takes it from the data.
        conditional: Always true: encoder and decoder see the class.
        **kwargs: See `VAE`.

    Raises:
        ValueError: If ``alpha`` is negative, a share or a number of images is impossible, the
            classifier does not return one logit per class, or ``conditional`` is false.

    References:
        Kingma et al. (2014), Semi-supervised learning with deep generative models,
        https://arxiv.org/abs/1406.5298 (error on MNIST with 100 labels 11.97 %)

    Example:
        >>> model = M2(num_classes=10)
        >>> model.classify(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 10])
        >>> model.sample(2, label=7).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        alpha: float = 0.1,
        labeled_share: float | None = None,
        classifier: Callable[[ImageShape, int, int], Encoder] = ConvEncoder,
        num_labeled: int = 0,
        num_train: int = 0,
        conditional: bool = True,
        **kwargs: Any,
    ) -> None:
        if not conditional:
            raise ValueError("M2 is always conditional: use VAE for a model without classes")
        super().__init__(conditional=conditional, **kwargs)
        if not alpha >= 0:
            raise ValueError(f"alpha must not be negative, got {alpha}")
        if labeled_share is not None and not 0 <= labeled_share <= 1:
            raise ValueError(f"labeled_share must be between 0 and 1, got {labeled_share}")
        if not 0 <= num_labeled <= max(num_train, 0):
            raise ValueError(
                f"num_labeled must be between 0 and num_train, got {num_labeled} of {num_train}"
            )
        self.alpha = alpha
        if labeled_share is None and num_labeled:
            labeled_share = num_labeled / num_train
        self.labeled_share = labeled_share
        self.classifier = classifier(self.image_shape, self.num_classes, 0)
        with self.inference():
            made = tuple(self.classifier(torch.zeros(1, *self.image_shape), None).shape[1:])
        if made != (self.num_classes,):
            raise ValueError(
                f"{type(self.classifier).__name__} returns {made} for an image, and M2 needs "
                f"({self.num_classes},): choose an encoder of vectors as its classifier"
            )

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `GenerativeModel.capabilities`."""
        return super().capabilities | {Capability.CLASSIFIER}

    @property
    def needs_labels(self) -> bool:
        """See `ImageModel.needs_labels`; unknown classes are inferred."""
        return False

    # Training

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> M2Terms:
        """See `BaseVAE.terms`.

        Args:
            x: Images, (B, C, H, W).
            condition: One-hot classes, (B, num_classes), where they are known, else 0. Only in
                training do they have an effect on the bound.
            noise: Source of every random number, the same for all classes.
        """
        assert condition is not None
        log_q = self.class_logits(x).log_softmax(1)
        labeled = condition.float().sum(1)  # 1 where the class is known, else 0
        known = labeled[:, None] if self.training else torch.zeros_like(labeled)[:, None]
        q = known * condition.float() + (1 - known) * log_q.exp()
        image, y = (condition.gt(0) | known.eq(0)).nonzero(as_tuple=True)
        one_hot = functional.one_hot(y, self.num_classes).to(condition.dtype)
        pairs = x[image], one_hot
        z = self.posterior_family(super().posterior_features(*pairs))
        given = self.elbo_terms(z, *pairs, _repeated(noise, image))

        def mean(values: Tensor) -> Tensor:
            """Return the mean over q(y|x) of values of pairs of an image and a class, (B,)."""
            return torch.zeros_like(labeled).index_add(0, image, q[image, y] * values)

        negative_entropy = (1 - known[:, 0]) * (log_q.exp() * log_q).sum(1)
        kl_class = negative_entropy + math.log(self.num_classes)
        bound = (mean(given.reconstruction), mean(given.kl) + kl_class, kl_class)
        surprise = -(condition.float() * log_q).sum(1)
        if self.training:
            return M2Terms(*bound, **self._of_labeled(surprise, labeled))
        if not labeled.all():
            return M2Terms(*bound)
        right = log_q.argmax(1).eq(condition.argmax(1)).float()
        return M2Terms(*bound, class_cross_entropy=surprise, accuracy=right)

    def _of_labeled(self, surprise: Tensor, labeled: Tensor) -> dict[str, Tensor]:
        """Return the mean of -log q(y|x) over labeled images, and the weights of all images."""
        joined = gather_rows(labeled)
        cross_entropy = join_rows(surprise).sum() / joined.sum().clamp(min=1)
        weight = torch.ones_like(labeled)
        if self.labeled_share is not None:
            share = joined.mean()
            # Of a kind that is not in the batch, there is nothing to weight.
            of_labeled = self.labeled_share / share.clamp(min=1e-9)
            of_others = (1 - self.labeled_share) / (1 - share).clamp(min=1e-9)
            weight = torch.where(labeled > 0, of_labeled, of_others)
        return {"class_cross_entropy": cross_entropy, "weight": weight}

    def objective(self, terms: Any) -> Tensor:
        """Return the weighted bound + alpha times the cross-entropy; in evaluation the bound."""
        assert isinstance(terms, M2Terms)
        if terms.weight is None:
            return terms.negative_elbo
        assert terms.class_cross_entropy is not None
        return terms.weight * terms.negative_elbo + self.alpha * terms.class_cross_entropy

    # The distributions

    def class_logits(self, x: Tensor) -> Tensor:
        """Return the logits of q(y|x) of images (B, C, H, W), float32, with gradients."""
        logits: Tensor = self.classifier(self.to_device_dtype(x), None).float()
        return logits

    def posterior_features(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `LatentVariableModel.posterior_features`; unknown classes are the most probable."""
        if condition is not None:
            known = condition.sum(1, keepdim=True) > 0
            best = functional.one_hot(self.class_logits(x).argmax(1), self.num_classes)
            condition = torch.where(known, condition, best.to(condition.dtype))
        return super().posterior_features(x, condition)

    def log_marginal(
        self,
        x: Tensor,
        condition: Tensor | None,
        noise: Noise,
        num_samples: int,
        rows: int | None = None,
    ) -> Tensor:
        """See `GenerativeModel.log_marginal`; with unknown classes, log p(x) of the sum of all."""
        assert condition is not None
        known = condition.sum(1) > 0
        if known.all():
            return super().log_marginal(x, condition, noise, num_samples, rows)
        of_classes = []
        for y in range(self.num_classes):
            one_hot = torch.zeros_like(condition)
            one_hot[:, y] = 1
            again = noise.restart()
            of_classes.append(super().log_marginal(x, one_hot, again, num_samples, rows))
        joint = torch.stack(of_classes, 1)
        given = (joint * condition).sum(1)
        return torch.where(known, given, joint.logsumexp(1) - math.log(self.num_classes))

    # Inference

    def classify(self, x: Tensor) -> Tensor:
        """Return q(y|x) of images (B, C, H, W) in [0, 1], (B, num_classes)."""
        self.check_images(x)
        with self.inference():
            return self.class_logits(x).softmax(1)

    def labels_for(self, x: Tensor, label: Tensor | None) -> Tensor | None:
        """See `ImageModel.labels_for`: the most probable classes, (B,)."""
        return self.classify(x).argmax(1)

    def decode(self, z: Any, label: Labels = None) -> Tensor:
        """See `GenerativeModel.decode`.

        Raises:
            ValueError: If there is no label: a latent does not tell the class.
        """
        if label is None:
            raise ValueError(
                f"M2 decodes a latent given its class: give a label in 0..{self.num_classes - 1}"
            )
        return super().decode(z, label)

    def reconstruct(self, x: Tensor, label: Labels = None) -> Tensor:
        """See `GenerativeModel.reconstruct`; without a label, with the most probable class."""
        label = self.labels_for(x, None) if label is None else label
        return super().reconstruct(x, label)

    def predict(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """See `GenerativeModel.predict`; adds ``probabilities`` and the class ``predicted``."""
        probabilities = self.classify(x)
        found = {"probabilities": probabilities, "predicted": probabilities.argmax(1)}
        return {**super().predict(x, None), **found}


def _repeated(noise: Noise, rows: Tensor) -> Noise:
    """Return a stream in which each of some rows of a batch has the noise of its image."""
    return Noise(noise.index[rows], *noise.keys, batch=noise.batch)
