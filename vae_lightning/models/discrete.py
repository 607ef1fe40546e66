"""What models with a discrete latent share: maps of codes, which a prior can be learned over."""

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import Latents
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import Codes, GenerativeModel
from vae_lightning.truncation import Truncation


class CodeMap(NamedTuple):
    """A map of codes.

    Attributes:
        shape: (h, w, depth).
        codebook_size: Number of values of a code.
    """

    shape: tuple[int, int, int]
    codebook_size: int

    @property
    def length(self) -> int:
        """Number of codes."""
        return math.prod(self.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of the indices: (h, w), or (h, w, depth) for several codes per position."""
        return self.shape if self.shape[2] > 1 else self.shape[:2]


class DiscreteModel(GenerativeModel, ABC):
    """An autoencoder whose latent consists of one or more maps of codes.

    Args:
        **kwargs: See `GenerativeModel`.
    """

    # What a model implements

    @abstractmethod
    def codes(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """Return the code indices of images (B, C, H, W) by level, the uppermost first.

        Returns:
            int64, each (B, h, w), or (B, h, w, depth).
        """

    @abstractmethod
    def lookup(self, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the vectors of codes by level, each (B, D, h, w).

        Those of all levels are what `likelihood_params` takes.

        Args:
            codes: Codes of the uppermost levels, or of all.
        """

    # Inference

    @cached_property
    def code_maps(self) -> tuple[CodeMap, ...]:
        """The maps of codes by level, the uppermost first, found by encoding a black image."""
        with self.inference():
            x = torch.zeros(1, *self.image_shape, device=self.device)
            condition = self.encode_labels(0 if self.conditional else None, 1)
            codes = self.codes(self.to_device_dtype(x), condition)
        sizes = self.level_sizes
        return tuple(
            CodeMap(_with_depth(level.shape[1:]), size)
            for level, size in zip(codes, sizes, strict=True)
        )

    def embed(self, x: Tensor, label: Labels = None) -> Latents:
        """Return the vectors of the codes of images, (B, D, h, w); a tuple for several levels."""
        self.check_images(x)
        with self.inference():
            vectors = self.lookup(self.codes(x, self.network_condition(label, len(x))))
        return one_or_all(vectors)

    def by_codebook(self, levels: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return code indices by level as maps (B, h, w), by the names of `codebooks`."""
        maps = [one for level in levels for one in (level.unbind(3) if level.ndim > 3 else [level])]
        return dict(zip(self.codebook_sizes, maps, strict=True))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Numbers of values of a code by level."""
        return tuple(self.codebook_sizes.values())

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the levels; "" for a single one."""
        names = tuple(str(i) for i in range(len(self.level_sizes)))
        return names if len(names) > 1 else ("",)

    def encode(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """See `GenerativeModel.encode`; returns what `named_codes` does."""
        return self.named_codes(self.codes(x, condition))

    def named_codes(self, levels: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return codes by level as ``codes``, or as ``codes_LEVEL`` for several levels.

        Each is int64, (B, h, w), or (B, h, w, depth) for several codes at each position.
        """
        names = ("_".join(filter(None, ("codes", level))) for level in self.level_names)
        return dict(zip(names, levels, strict=True))

    def encode_indices(self, x: Tensor, label: Labels = None) -> Codes:
        """Return the code indices of images (B, C, H, W)."""
        self.check_images(x)
        with self.inference():
            codes = self.codes(x, self.network_condition(label, len(x)))
        return one_or_all(codes)

    def decode_indices(self, indices: Codes, label: Labels = None) -> Tensor:
        """Decode code indices, as `encode_indices` returns them, to images, (B, C, H, W).

        Raises:
            ValueError: If the maps have another shape, or an index is not that of a code.
        """
        levels = (indices,) if isinstance(indices, Tensor) else tuple(indices)
        self._check_codes(levels)
        with self.inference():
            vectors = self.lookup(tuple(level.to(self.device).long() for level in levels))
        return self.decode(one_or_all(vectors), label)

    def _check_codes(self, levels: tuple[Tensor, ...]) -> None:
        """Check code indices of a user.

        Raises:
            ValueError: If they are not codes of this model.
        """
        dims = [one.dims for one in self.code_maps]
        maps = " and ".join(f"({', '.join(map(str, ('B', *one)))})" for one in dims)
        expected = f"codes of this {type(self).__name__} are integer tensors of shape {maps}"
        if not all(isinstance(level, Tensor) for level in levels):
            kinds = " and ".join(type(level).__name__ for level in levels)
            raise ValueError(f"{expected}, got {kinds}")
        if (
            [tuple(level.shape[1:]) for level in levels] != dims
            or len({len(level) for level in levels}) > 1
            or any(level.is_floating_point() or level.dtype == torch.bool for level in levels)
        ):
            given = " and ".join(f"{level.dtype} {tuple(level.shape)}" for level in levels)
            raise ValueError(f"{expected}, got {given}")
        for level, size in zip(levels, self.level_sizes, strict=True):
            if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < size:
                raise ValueError(
                    f"codes of this {type(self).__name__} are integers in 0..{size - 1}, got "
                    f"{int(level.min())} to {int(level.max())}"
                )


class CodeModel(DiscreteModel, ABC):
    """A discrete model with a learned distribution over its codes (`Capability.CODE_PRIOR`).

    Args:
        **kwargs: See `GenerativeModel`.
    """

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `ImageModel.capabilities`."""
        condition = {Capability.CONDITIONAL} if self.conditional else set()
        generates = {Capability.CODE_PRIOR, Capability.SAMPLES}
        return frozenset({Capability.CODEBOOK} | generates | condition)

    @abstractmethod
    def level_nll(self, levels: tuple[Tensor, ...], condition: Tensor | None) -> tuple[Tensor, ...]:
        """Return -log p(codes of a level | levels above) in nats by level, each (B,).

        Args:
            levels: Codes by level, (B, h, w) or (B, h, w, depth).
            condition: One-hot classes, (B, num_classes), of a conditional model.
        """

    @abstractmethod
    def sample_codes(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        truncation: Truncation | None = None,
    ) -> tuple[Tensor, ...]:
        """Draw the codes of images.

        Args:
            n: Number of images.
            condition: One-hot classes, (n, num_classes), of a conditional model.
            generator: A CPU generator; by default torch's global one.
            truncation: Temperature, top-k and top-p.

        Returns:
            Codes by level, int64, (n, h, w) or (n, h, w, depth).
        """

    def code_nll(self, levels: tuple[Tensor, ...], condition: Tensor | None) -> Tensor:
        """Return -log p(codes of all levels) in nats, (B,); see `level_nll`."""
        return torch.stack(self.level_nll(levels, condition)).sum(0)

    def sample_latents(
        self, n: int, condition: Tensor | None, generator: torch.Generator | None
    ) -> Latents:
        """See `GenerativeModel.sample_latents`."""
        vectors = self.lookup(self.sample_codes(n, condition, generator))
        return one_or_all(vectors)


def one_or_all(levels: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """Return a single level as a tensor, and several as they are: what users and decoders see.

    Example:
        >>> one_or_all((torch.zeros(2, 7, 7),)).shape
        torch.Size([2, 7, 7])
    """
    return levels[0] if len(levels) == 1 else levels


def flatten_codes(levels: tuple[Tensor, ...]) -> Tensor:
    """Return the codes of all levels as one sequence, (B, N).

    Example:
        >>> flatten_codes((torch.zeros(2, 4, 4), torch.zeros(2, 7, 7))).shape
        torch.Size([2, 65])
    """
    return torch.cat([level.flatten(1) for level in levels], 1)


def unflatten_codes(flat: Tensor, maps: tuple[CodeMap, ...]) -> tuple[Tensor, ...]:
    """Return codes by level: invert `flatten_codes`.

    Example:
        >>> maps = CodeMap((4, 4, 1), 8), CodeMap((7, 7, 2), 8)
        >>> [level.shape[1:] for level in unflatten_codes(torch.zeros(2, 114), maps)]
        [torch.Size([4, 4]), torch.Size([7, 7, 2])]
    """
    return tuple(
        part.unflatten(1, one.dims)
        for part, one in zip(flat.split([one.length for one in maps], 1), maps, strict=True)
    )


def _with_depth(shape: torch.Size) -> tuple[int, int, int]:
    height, width, *depth = shape
    return height, width, depth[0] if depth else 1
