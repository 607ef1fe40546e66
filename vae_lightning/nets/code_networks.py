"""Autoregressive networks of code maps: log p(code_j | codes before it)."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_lightning.truncation import Truncation, draw_categories

MapShape = tuple[int, int, int]
"""Height, width, codes per position."""

NextLogits = Callable[[Tensor | None], Tensor]
"""Maps the codes (B,) drawn last, None at the start, to the logits of the next codes, (B, K)."""


class CodeNetwork(nn.Module, ABC):
    """Predict each code of a map from those before it, row by row.

    The codes of a position are adjacent in the sequence. Subclasses take the four arguments below
    first, then their own.

    Args:
        shape: Shape of the map, (h, w, depth); N = h w depth codes.
        codebook_size: Number K of values of a code.
        cond_features: Size of the condition (a one-hot class), 0 without a condition.
        context_channels: Channels of a map that is given as a condition, 0 without one.
    """

    @abstractmethod
    def forward(
        self, codes: Tensor, condition: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Return the logits of every code, given the codes before it.

        Args:
            codes: int64, (B, N).
            condition: Condition of each map, (B, cond_features).
            context: Known maps, (B, context_channels, h', w'), of any size.

        Returns:
            (B, N, K).
        """

    @abstractmethod
    def next_logits(self, n: int, condition: Tensor | None, context: Tensor | None) -> NextLogits:
        """Return a function that is called once for each code of ``n`` new maps, in order."""


def draw_codes(
    network: CodeNetwork,
    uniform: Tensor,
    condition: Tensor | None = None,
    context: Tensor | None = None,
    truncation: Truncation | None = None,
) -> Tensor:
    """Draw codes from a network, one after the other.

    Args:
        network: The network, in evaluation mode.
        uniform: Uniform numbers in [0, 1), (n, N), from which the codes are drawn.
        condition: See `CodeNetwork.forward`.
        context: See `CodeNetwork.forward`.
        truncation: Temperature, top-k and top-p.

    Returns:
        int64, (n, N).

    Example:
        >>> network = CausalTransformer((2, 2, 1), codebook_size=8)
        >>> draw_codes(network, torch.rand(3, 4)).shape
        torch.Size([3, 4])
    """
    step = network.next_logits(len(uniform), condition, context)
    codes: list[Tensor] = []
    for numbers in uniform.unbind(1):
        logits = step(codes[-1] if codes else None)
        codes.append(draw_categories(logits.float(), numbers, truncation))
    return torch.stack(codes, 1)


class _Block(nn.Module):
    """Transformer block: causal self-attention and an MLP, each after a layer normalization."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.in_projection = nn.Linear(dim, 3 * dim)
        self.out_projection = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.in_layer = nn.Linear(dim, 4 * dim)
        self.out_layer = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, cache: "_Cache | None" = None) -> Tensor:
        """Map (B, n, dim) to the same shape; with a cache, x are the positions after those in it.

        A cache takes one position at a time.
        """
        projected = self.in_projection(self.norm(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = projected.permute(2, 0, 3, 1, 4)  # each (B, heads, n, dim / heads)
        if cache is not None:
            k, v = cache.append(k, v)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.out_projection(attended.transpose(1, 2).flatten(2))
        return x + self.out_layer(functional.gelu(self.in_layer(self.mlp_norm(x))))


class _Cache:
    """Keys and values of the positions so far.

    Args:
        length: Largest number of positions.
    """

    def __init__(self, length: int) -> None:
        self.length, self.used = length, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, heads, 1, d), and return those of all positions so far."""
        if self.keys is None or self.values is None:
            self.keys, self.values = (
                x.new_empty(*x.shape[:2], self.length, x.shape[3]) for x in (k, v)
            )
        self.keys[:, :, self.used], self.values[:, :, self.used] = k[:, :, 0], v[:, :, 0]
        self.used += 1
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]


class CausalTransformer(CodeNetwork):
    """Transformer decoder over the codes in raster order.

    Args:
        shape: See `CodeNetwork`.
        codebook_size: See `CodeNetwork`.
        cond_features: See `CodeNetwork`.
        context_channels: See `CodeNetwork`. The context is processed by two convolutions and added
            at the position of the code that it helps to predict.
        dim: Size of the hidden vectors.
        layers: Number of blocks.
        heads: Number of attention heads, which has to divide ``dim``.

    Raises:
        ValueError: If a number is out of range.

    References:
        Vaswani et al. (2017), Attention is all you need, https://arxiv.org/abs/1706.03762
        Esser et al. (2021), Taming transformers for high-resolution image synthesis (a transformer
        as the prior of a VQ model), https://arxiv.org/abs/2012.09841

    Example:
        >>> network = CausalTransformer((7, 7, 1), codebook_size=512)
        >>> network(torch.zeros(2, 49, dtype=torch.long)).shape
        torch.Size([2, 49, 512])
    """

    def __init__(
        self,
        shape: MapShape,
        codebook_size: int,
        cond_features: int = 0,
        context_channels: int = 0,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if min(dim, layers, heads) < 1:
            raise ValueError(
                "CausalTransformer: dim, layers and heads must be positive, got "
                f"{dim}, {layers} and {heads}"
            )
        if dim % heads:
            raise ValueError(f"CausalTransformer: heads must divide dim {dim}, got {heads} heads")
        self.shape, self.codebook_size = shape, codebook_size
        height, width, depth = shape
        self.length = height * width * depth
        self.start = nn.Parameter(torch.randn(dim) * 0.02)
        self.embedding = nn.Embedding(depth * codebook_size, dim)
        self.rows = nn.Parameter(torch.randn(height, 1, 1, dim) * 0.02)
        self.columns = nn.Parameter(torch.randn(width, 1, dim) * 0.02)
        self.depths = nn.Parameter(torch.randn(depth, dim) * 0.02)
        self.condition = nn.Linear(cond_features, dim, bias=False) if cond_features else None
        self.context: nn.Module | None = None
        if context_channels:
            self.context = nn.Sequential(
                nn.Conv2d(context_channels, dim, kernel_size=3, padding=1),
                nn.GELU(),
                nn.Conv2d(dim, dim, kernel_size=3, padding=1),
            )
        self.blocks = nn.ModuleList([_Block(dim, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Parameter(torch.randn(depth, codebook_size, dim) * 0.02)
        self.head_bias = nn.Parameter(torch.zeros(depth, codebook_size))
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in self.blocks:
            assert isinstance(block, _Block)
            for layer in (block.out_projection, block.out_layer):
                nn.init.normal_(layer.weight, std=0.02 / (2 * layers) ** 0.5)  # as GPT-2 does

    def forward(
        self, codes: Tensor, condition: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """See `CodeNetwork.forward`."""
        known = self._known(len(codes), condition, context)
        start = self.start.expand(len(codes), 1, -1)
        x = torch.cat([start, self._embed(codes)[:, :-1]], 1) + known
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).unflatten(1, (-1, self.shape[2]))
        logits = torch.einsum("npdc,dkc->npdk", x, self.head.to(x.dtype)) + self.head_bias
        return logits.flatten(1, 2)

    def next_logits(self, n: int, condition: Tensor | None, context: Tensor | None) -> NextLogits:
        """See `CodeNetwork.next_logits`; keys and values are kept, so each is computed once."""
        known = self._known(n, condition, context)
        caches = [_Cache(self.length) for _ in self.blocks]

        def step(previous: Tensor | None) -> Tensor:
            i = caches[0].used
            depth = i % self.shape[2]
            if previous is None:
                x = self.start.expand(n, -1)
            else:
                before = (i - 1) % self.shape[2]
                x = self.embedding(previous + before * self.codebook_size)
            x = (x + known[:, i])[:, None]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache)
            return functional.linear(self.norm(x[:, 0]), self.head[depth], self.head_bias[depth])

        return step

    def _embed(self, codes: Tensor) -> Tensor:
        """Return a vector for every code, (B, N, dim)."""
        depth = torch.arange(codes.shape[1], device=codes.device) % self.shape[2]
        embedded: Tensor = self.embedding(codes + depth * self.codebook_size)
        return embedded

    def _known(self, n: int, condition: Tensor | None, context: Tensor | None) -> Tensor:
        """Return what is known about each position beforehand, (n, N, dim)."""
        places = (self.rows + self.columns + self.depths).flatten(0, 2)
        known = places.expand(n, -1, -1)
        if self.condition is not None:
            assert condition is not None
            known = known + self.condition(condition.to(self.start.dtype))[:, None]
        if self.context is not None:
            assert context is not None
            enlarged = functional.interpolate(context, self.shape[:2], mode="nearest")
            enlarged = enlarged.to(self.start.dtype)  # codes are float32 in every precision
            features = self.context(enlarged).flatten(2).transpose(1, 2)
            known = known + features.repeat_interleave(self.shape[2], 1)
        return known
