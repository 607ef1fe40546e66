"""Discrete VAE (Ramesh et al., 2021), https://arxiv.org/abs/2102.12092."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from vae_lightning.distributions.posteriors import LatentDistribution
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.categorical_vae import CategoricalVAE
from vae_lightning.models.discrete import DiscreteModel
from vae_lightning.models.vae import ELBOTerms
from vae_lightning.nets import Decoder, Encoder, ImageShape, ResidualDecoder, ResidualEncoder
from vae_lightning.nets.layers import channels_last
from vae_lightning.randomness import Noise


class _LogitsEncoder(Encoder):
    """Encoder whose map of logits is flattened, position after position.

    Args:
        image_shape: See `Encoder`.
        out_features: Number of logits of all positions, h w K.
        cond_features: See `Encoder`.
        network: Network from images to a map of K channels.
        codebook_size: Number K of codes.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        out_features: int,
        cond_features: int = 0,
        network: Callable[[ImageShape, int, int], Encoder] = ResidualEncoder,
        codebook_size: int = 512,
    ) -> None:
        super().__init__()
        self.network = network(image_shape, codebook_size, cond_features)
        self.out_features = out_features

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Encoder.forward`; returns (B, h w K)."""
        return self.network(x, condition).movedim(1, -1).flatten(1)


class _CodesDecoder(Decoder):
    """Decoder of (relaxed) one-hot codes: a weighted sum of learned vectors, then a network.

    Args:
        image_shape: See `Decoder`.
        in_features: Number of probabilities of all positions, h w K.
        cond_features: See `Decoder`.
        network: Network from a map of ``embedding_dim`` channels to parameters.
        codebook_size: Number K of codes.
        embedding_dim: Size of a code.
        map_shape: (h, w).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        in_features: int,
        cond_features: int = 0,
        network: Callable[[ImageShape, int, int], Decoder] = ResidualDecoder,
        codebook_size: int = 512,
        embedding_dim: int = 64,
        map_shape: tuple[int, int] = (7, 7),
    ) -> None:
        super().__init__()
        self.map_shape = map_shape
        self.codebook = nn.Parameter(torch.randn(codebook_size, embedding_dim))
        self.network = network(image_shape, embedding_dim, cond_features)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """See `Decoder.forward`; takes (B, h w K)."""
        one_hot = z.unflatten(1, (*self.map_shape, -1))
        vectors = (one_hot @ self.codebook.to(z.dtype)).movedim(-1, 1)
        return self.decode(vectors, condition)

    def decode(self, vectors: Tensor, condition: Tensor | None) -> Tensor:
        """Return the parameters of the likelihood for a map of vectors, (B, D, h, w)."""
        params: Tensor = self.network(channels_last(vectors), condition)
        return params


@dataclass(frozen=True)
class DVAETerms(ELBOTerms):
    """Terms of the ELBO, and the most probable codes.

    Attributes:
        indices: Codes, int64, (B, h, w), by codebook; not logged.
    """

    indices: dict[str, Tensor]

    def code_indices(self) -> dict[str, Tensor]:
        """See `ObjectiveTerms.code_indices`."""
        return self.indices


class DVAE(DiscreteModel, CategoricalVAE):
    """VAE with a categorical variable at each position of a map, relaxed in training.

    It is a `CategoricalVAE` whose variables are the positions of a convolutional map, so it has a
    bound and a likelihood, with a uniform prior over the codes. A `CodePrior` samples better.

    Args:
        codebook_size: Number of codes.
        embedding_dim: Size of a code in the decoder.
        encoder: Network from images to a map of ``codebook_size`` channels.
        decoder: Network from a map of ``embedding_dim`` channels to the parameters of the
            likelihood.
        image_shape: (C, H, W) of the images. The command line takes it from the data.
        num_classes: Number of classes of the data, 0 without labels. Taken from the data, too.
        conditional: Whether the model sees the class of each image.
        **kwargs: See `CategoricalVAE`, without ``num_variables`` and ``num_categories``.

    Raises:
        ValueError: If a number is out of range, or the encoder returns no map.
    """

    def __init__(
        self,
        codebook_size: int = 512,
        embedding_dim: int = 64,
        encoder: Callable[[ImageShape, int, int], Encoder] = ResidualEncoder,
        decoder: Callable[[ImageShape, int, int], Decoder] = ResidualDecoder,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 0,
        conditional: bool = False,
        **kwargs: Any,
    ) -> None:
        if codebook_size < 2 or embedding_dim < 1:
            raise ValueError(
                "codebook_size must be at least 2 and embedding_dim positive, got "
                f"{codebook_size} and {embedding_dim}"
            )
        cond_features = num_classes if conditional else 0
        shape = (image_shape[0], image_shape[1], image_shape[2])  # a list in a checkpoint
        height, width = _map_shape(encoder, shape, codebook_size, cond_features)
        super().__init__(
            num_variables=height * width,
            num_categories=codebook_size,
            encoder=partial(_LogitsEncoder, network=encoder, codebook_size=codebook_size),
            decoder=partial(
                _CodesDecoder,
                network=decoder,
                codebook_size=codebook_size,
                embedding_dim=embedding_dim,
                map_shape=(height, width),
            ),
            image_shape=image_shape,
            num_classes=num_classes,
            conditional=conditional,
            **kwargs,
        )
        self.map_shape = height, width

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `ImageModel.capabilities`."""
        without = {Capability.TRAVERSABLE}  # hundreds of values at every position
        return (super().capabilities - without) | {Capability.CODEBOOK}

    @property
    def codebooks(self) -> dict[str, Tensor]:
        """See `ImageModel.codebooks`."""
        return {"": cast(_CodesDecoder, self.decoder).codebook.detach()}

    def terms(self, x: Tensor, condition: Tensor | None, noise: Noise) -> DVAETerms:
        """See `BaseVAE.terms`."""
        q = self.posterior(x, condition)
        elbo = self.elbo_terms(q, x, condition, noise)
        return DVAETerms(elbo.reconstruction, elbo.kl, {"": self._most_probable(q)})

    def codes(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """See `DiscreteModel.codes`: the most probable ones."""
        return (self._most_probable(self.posterior(x, condition)),)

    def _most_probable(self, q: LatentDistribution) -> Tensor:
        z = cast(Tensor, q.point_estimate)
        return z.unflatten(1, (*self.map_shape, -1)).argmax(-1)

    def lookup(self, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return one-hot vectors of the codes, (B, h w K)."""
        size = self.codebook_sizes[""]
        return tuple(nn.functional.one_hot(level, size).flatten(1).float() for level in codes)

    def decode_vectors(self, vectors: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the parameters of p(x|z) for vectors of `codebooks`, (B, embedding_dim, h, w)."""
        return cast(_CodesDecoder, self.decoder).decode(vectors, condition)


def _map_shape(
    encoder: Callable[[ImageShape, int, int], Encoder],
    image_shape: ImageShape,
    codebook_size: int,
    cond_features: int,
) -> tuple[int, int]:
    """Return the size of the map of an encoder."""
    state = torch.get_rng_state()
    network = encoder(image_shape, codebook_size, cond_features).eval()
    torch.set_rng_state(state)  # the weights of the real one are those of a model without this try
    condition = torch.zeros(1, cond_features) if cond_features else None
    with torch.no_grad():
        found = network(torch.zeros(1, *image_shape), condition).shape[1:]
    if len(found) != 3 or found[0] != codebook_size:
        raise ValueError(
            f"{type(network).__name__} returns {tuple(found)} for an image, but a DVAE needs a map "
            f"of {codebook_size} channels: choose ResidualEncoder, for example"
        )
    return found[1], found[2]
