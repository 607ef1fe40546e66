"""Sylvester flow posterior (van den Berg et al., 2018), https://arxiv.org/abs/1803.05649."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vae_lightning.distributions.posteriors import DiagonalGaussian, Posterior
from vae_lightning.distributions.transformed import TransformedGaussian
from vae_lightning.functional import without_autocast

Variant = Literal["orthogonal", "householder", "triangular"]

_LARGEST = 1 - 1e-6
"""Largest magnitude of the diagonals: their products exceed -1 also after rounding."""
_MIN_NORM = 1e-15


class SylvesterFlowPosterior(Posterior):
    r"""Gaussian transformed by Sylvester flows, whose parameters the encoder provides.

    .. math:: f(z) = z + Q R \tanh(\tilde R Q^\top z + b), \quad
        \log |\det \partial f / \partial z| = \sum_{i=1}^M
        \log\left(1 + (1 - \tanh_i^2) \, r_{ii} \tilde r_{ii}\right)

    with M orthonormal columns Q and upper triangular R and :math:`\tilde R`. A flow is invertible
    if :math:`r_{ii} \tilde r_{ii} > -1`; so the diagonals are in (-1, 1). With M = 1 it is a planar
    flow whose u is parallel to w; with larger M, one flow changes M directions at once.

    The variants differ in Q:

    - ``orthogonal``: M = ``columns`` columns, by the QR decomposition of a matrix from the encoder.
      The paper computes them by an iteration, which is several times slower.
    - ``householder``: M = L; Q is a product of Householder reflections.
    - ``triangular``: M = L; Q is the identity in every other flow, else it reverses the order of
      the dimensions.

    Use it for tight bounds: in the paper, it reaches the best of all compared flows. Train it with
    KL warm-up. An encoder has M (M + 2) outputs per flow for the two triangular matrices and b, so
    ``orthogonal`` with few columns is the cheapest. ONNX has no QR decomposition: choose another
    variant if the encoder has to be exported to it.

    Args:
        latent_dim: See `Posterior`.
        flows: Number of flows.
        variant: ``orthogonal``, ``householder`` or ``triangular``.
        columns: Number of orthonormal columns of the orthogonal variant, or all ``latent_dim`` if
            these are fewer.
        reflections: Number of Householder reflections of each flow of the Householder variant.

    Raises:
        ValueError: If a number is not positive, or there is no such variant.

    References:
        van den Berg et al. (2018), Sylvester normalizing flows for variational inference,
        https://arxiv.org/abs/1803.05649

    Example:
        >>> posterior = SylvesterFlowPosterior(latent_dim=4, flows=2, variant="householder")
        >>> posterior(torch.zeros(8, posterior.in_features)).mean.shape
        torch.Size([8, 4])
    """

    def __init__(
        self,
        latent_dim: int,
        flows: int = 4,
        variant: Variant = "orthogonal",
        columns: int = 8,
        reflections: int = 8,
    ) -> None:
        super().__init__(latent_dim)
        for name, value in {"flows": flows, "columns": columns, "reflections": reflections}.items():
            if value < 1:
                raise ValueError(f"SylvesterFlowPosterior: {name} must be positive, got {value}")
        if variant not in ("orthogonal", "householder", "triangular"):
            raise ValueError(
                "SylvesterFlowPosterior: variant must be orthogonal, householder or triangular, "
                f"got {variant!r}"
            )
        self.flows = flows
        self.variant: Variant = variant
        self.columns = min(columns, latent_dim)
        self.reflections = reflections

    @property
    def directions(self) -> int:
        """Number of directions M that a flow changes."""
        return self.columns if self.variant == "orthogonal" else self.latent_dim

    @property
    def in_features(self) -> int:
        """Mu and log_var, and Q, the triangular matrices and the offset of every flow."""
        m = self.directions
        return 2 * self.latent_dim + self.flows * (self._q_features + m * m + 2 * m)

    @property
    def _q_features(self) -> int:
        vectors = {
            "orthogonal": self.columns,
            "householder": self.reflections,
            "triangular": 0,
        }
        return vectors[self.variant] * self.latent_dim

    def forward(self, features: Tensor) -> TransformedGaussian:
        """See `Posterior.forward`."""
        size, m = self.latent_dim, self.directions
        mu, log_var, rest = features.tensor_split([size, 2 * size], 1)
        q, square, diagonal, b = rest.unflatten(1, (self.flows, -1)).split(
            [self._q_features, m * m, m, m], 2
        )
        # One square matrix has the entries of both triangular matrices, as in the paper's code.
        square = square.unflatten(2, (m, m))
        r, r_tilde = _upper(square, square.diagonal(dim1=2, dim2=3)), _upper(square.mT, diagonal)
        vectors = q.unflatten(2, (-1, size)) if self._q_features else None
        bases = self._bases(vectors)
        flows = [
            SylvesterFlow(bases[t], r[:, t], r_tilde[:, t], b[:, t]) for t in range(self.flows)
        ]
        return TransformedGaussian(
            DiagonalGaussian(mu, log_var), lambda z: sylvester_flows(z, flows)
        )

    def _bases(self, vectors: Tensor | None) -> "list[OrthonormalBasis]":
        """Return Q of each flow, made of vectors (B, T, M, L)."""
        if vectors is None:
            return [_permutation(reverse=t % 2 == 1) for t in range(self.flows)]
        if self.variant == "householder":
            units = unit_vectors(vectors)
            return [_product_of_reflections(units[:, t]) for t in range(self.flows)]
        matrices = orthonormal_columns(vectors)
        return [_columns(matrices[:, t]) for t in range(self.flows)]


class OrthonormalBasis(NamedTuple):
    """Maps by the orthonormal columns Q, each from draws (B, n, ...) to draws.

    Attributes:
        project: The map z -> Q^T z.
        lift: The map y -> Q y.
    """

    project: Callable[[Tensor], Tensor]
    lift: Callable[[Tensor], Tensor]


class SylvesterFlow(NamedTuple):
    """Parameters of a flow for each image.

    Attributes:
        basis: The orthonormal columns Q.
        r: Upper triangular matrices R, (B, M, M).
        r_tilde: The second ones, whose diagonals times those of R exceed -1.
        b: Offsets, (B, M).
    """

    basis: OrthonormalBasis
    r: Tensor
    r_tilde: Tensor
    b: Tensor


def sylvester_flows(z: Tensor, flows: Sequence[SylvesterFlow]) -> tuple[Tensor, Tensor]:
    """Apply Sylvester flows, one after the other.

    Args:
        z: Draws, (B, n, L).
        flows: The flows.

    Returns:
        Transformed draws (B, n, L) and the log-determinants of the Jacobians, (B, n).
    """
    log_det = z.new_zeros(z.shape[:2])
    with without_autocast(z):
        for basis, r, r_tilde, b in flows:
            h = (basis.project(z) @ r_tilde.mT + b[:, None]).tanh()
            z = z + basis.lift(h @ r.mT)
            product = r.diagonal(dim1=1, dim2=2) * r_tilde.diagonal(dim1=1, dim2=2)
            # log(1 + (1 - h^2) r r~) without the difference of equals where r r~ is near -1.
            stretch = h.square() + (1 - h.square()) * (1 + product[:, None])
            log_det = log_det + stretch.log().sum(2)
    return z, log_det


def orthonormal_columns(vectors: Tensor) -> Tensor:
    """Return matrices with orthonormal columns.

    The vectors are added to fixed orthonormal ones, which differ between the flows. Without these,
    the QR decomposition would have no gradient when a new encoder returns about 0.

    Args:
        vectors: Vectors from the encoder, (B, T, M, L).

    Returns:
        (B, T, L, M).
    """
    flows, m, size = vectors.shape[1:]
    own = torch.arange(flows * m, device=vectors.device).view(flows, m) % size
    start = torch.nn.functional.one_hot(own, size).to(vectors.dtype)
    return torch.linalg.qr((vectors + start).mT).Q


def unit_vectors(vectors: Tensor) -> Tensor:
    """Return vectors of norm 1, and exactly 0 for those that are about 0."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(norm > _MIN_NORM, vectors / norm.clamp(min=_MIN_NORM), 0.0)


def _upper(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """Return upper triangular matrices with diagonals in (-1, 1)."""
    return matrix.triu(1) + (_LARGEST * diagonal.tanh()).diag_embed()


def _columns(q: Tensor) -> OrthonormalBasis:
    """Return the basis of matrices (B, L, M) with orthonormal columns."""
    return OrthonormalBasis(lambda z: z @ q, lambda y: y @ q.mT)


def _permutation(reverse: bool) -> OrthonormalBasis:
    def keep(z: Tensor) -> Tensor:
        return z.flip(2) if reverse else z

    return OrthonormalBasis(keep, keep)


def _product_of_reflections(units: Tensor) -> OrthonormalBasis:
    """Return the basis Q = H_1 H_2 ... of reflections at unit vectors (B, H, L)."""

    def reflect(z: Tensor, order: Sequence[int]) -> Tensor:
        for i in order:
            v = units[:, None, i]
            z = z - (2 * (z * v).sum(2, keepdim=True)) * v
        return z

    order = range(units.shape[1])
    return OrthonormalBasis(lambda z: reflect(z, order), lambda y: reflect(y, order[::-1]))
