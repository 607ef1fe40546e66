"""Base class of quantizers, and how gradients pass through them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vae_lightning.functional import without_autocast
from vae_lightning.precision import Float32Module

Gradient = Literal["straight_through", "rotation"]


class Quantized(NamedTuple):
    """Result of quantizing a map of vectors (B, D, h, w).

    Attributes:
        z_q: The codes, (B, D, h, w), with a gradient to the input.
        indices: Indices of the codes, int64, (B, h, w), or (B, h, w, depth) for several codes per
            position.
        codebook_loss: ||sg[z_e] - e||^2 summed over the map, (B,), which moves the codes toward the
            encoder's output; None where codes are not learned by a loss.
        commitment_loss: ||z_e - sg[e]||^2 summed over the map, (B,), which moves the encoder's
            output toward the codes; None if the quantizer has no such loss.
        regularizer: Additional terms of the quantizer, already weighted, (B,) or (); None if there
            are none.
    """

    z_q: Tensor
    indices: Tensor
    codebook_loss: Tensor | None = None
    commitment_loss: Tensor | None = None
    regularizer: Tensor | None = None


class Quantizer(Float32Module, ABC):
    """Replace each vector of a map by a code.

    Everything is computed in float32, also under mixed precision, and parameters stay in float32
    when a model is converted to another type: half precision would choose other codes, and moving
    averages would drift.

    Subclasses take ``embedding_dim`` first, then their own arguments.

    Args:
        embedding_dim: Size D of a vector.

    Attributes:
        codebook_size: Number K of values of an index.
        depth: Number of indices per position.

    Raises:
        ValueError: If ``embedding_dim`` is not positive.
    """

    codebook_size: int
    depth: int = 1

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(
                f"{type(self).__name__}: embedding_dim must be at least 1, got {embedding_dim}"
            )
        self.embedding_dim = embedding_dim

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize a map of vectors and, in training mode, learn from it.

        Args:
            z_e: Output of the encoder, (B, D, h, w).

        Raises:
            ValueError: If it does not have D channels.
        """
        if z_e.ndim < 2 or z_e.shape[1] != self.embedding_dim:
            raise ValueError(
                f"{type(self).__name__}: expected vectors of embedding_dim {self.embedding_dim} in "
                f"a tensor (B, {self.embedding_dim}, h, w), got {tuple(z_e.shape)}"
            )
        with without_autocast(z_e):
            quantized = self.quantize(z_e.float().movedim(1, -1))
        return quantized._replace(z_q=quantized.z_q.movedim(-1, 1))

    @abstractmethod
    def quantize(self, vectors: Tensor) -> Quantized:
        """Quantize vectors (B, h, w, D), float32; ``z_q`` has the same shape."""

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the code vectors at indices, (B, h, w) or (B, h, w, depth) -> (B, D, h, w)."""
        with without_autocast(indices):
            return self.codes_at(indices).movedim(-1, 1)

    @abstractmethod
    def codes_at(self, indices: Tensor) -> Tensor:
        """Return the code vectors at indices like `lookup`, but (B, h, w, D)."""

    @property
    @abstractmethod
    def codebooks(self) -> dict[str, Tensor]:
        """The vectors of the codes, (K, D), without gradients, for each index of a position."""

    @property
    def codebook_sizes(self) -> dict[str, int]:
        """Numbers of codes by the names of `codebooks`: "" for a single one, else 0, 1, ..."""
        names = [""] if self.depth == 1 else [str(i) for i in range(self.depth)]
        return dict.fromkeys(names, self.codebook_size)

    def has_started(self, count: Tensor) -> bool:
        """Return whether a saved count, (), is positive; a GPU is asked only until it is."""
        if not self.__dict__.get("_has_started"):
            self.__dict__["_has_started"] = bool(count > 0)
        return bool(self.__dict__["_has_started"])

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load the state, and forget whether the count before was positive."""
        self.__dict__.pop("_has_started", None)
        super()._load_from_state_dict(*args)


def check_choices(owner: object, kinds: dict[str, Any]) -> None:
    """Check attributes that take one of a few words.

    Args:
        owner: The object with the attributes.
        kinds: A ``Literal`` of the words by the name of the attribute.

    Raises:
        ValueError: If an attribute is another word.
    """
    for name, kind in kinds.items():
        value, words = getattr(owner, name), get_args(kind)
        if value not in words:
            known = ", ".join(words[:-1]) + f" or {words[-1]}"
            raise ValueError(f"{type(owner).__name__}: {name} must be {known}, got {value!r}")


def total_of(terms: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum of the terms that are not None, (B,) or (); None if all are."""
    held = [term for term in terms if term is not None]
    return torch.stack(held).sum(0) if held else None


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return ||a - b||^2 summed over the map, (B, ...) -> (B,)."""
    return (a - b).square().flatten(1).sum(1)


def pass_gradient(vectors: Tensor, codes: Tensor, gradient: Gradient) -> Tensor:
    """Return codes (..., D) with a gradient to the vectors (..., D) that they replace.

    Args:
        vectors: Output of the encoder.
        codes: The chosen codes; they receive no gradient.
        gradient: ``straight_through`` copies the gradient. ``rotation`` rotates and scales it as
            the code is rotated and scaled relative to the vector, so the angle between gradient and
            code is preserved.

    References:
        Fifty et al. (2024), Restructuring vector quantization with the rotation trick,
        https://arxiv.org/abs/2410.06424 (section 4.2)

    Example:
        >>> v, e = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 2.0]])
        >>> pass_gradient(v, e, "rotation")[0, 1].backward()
        >>> v.grad.round(decimals=4).tolist()
        [[2.0, 0.0]]
    """
    straight = vectors + (codes - vectors).detach()
    if gradient == "straight_through":
        return straight
    with torch.no_grad():
        length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        code_length = torch.linalg.vector_norm(codes, dim=-1, keepdim=True)
        u = vectors / length.clamp(min=1e-12)
        q = codes / code_length.clamp(min=1e-12)
        between = torch.linalg.vector_norm(u + q, dim=-1, keepdim=True)
        w = (u + q) / between.clamp(min=1e-12)
        # A vector of length 0, or opposite to its code, has no direction to rotate from, and one
        # that is much shorter than its code would get a huge gradient.
        is_defined = (length > 1e-3 * code_length) & (length > 1e-6) & (between > 1e-3)
        scale = code_length / length.clamp(min=1e-12)
    # The rotation that takes u to q: a product of two reflections.
    reflected = vectors - 2 * (vectors * w).sum(-1, keepdim=True) * w
    rotated = scale * (reflected + 2 * (vectors * u).sum(-1, keepdim=True) * q)
    return torch.where(is_defined, rotated, straight)
