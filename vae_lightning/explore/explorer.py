"""The page of ``vae explore``: one HTML file in which a model is explored by hand."""

import base64
import copy
import html
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from vae_lightning import plotting
from vae_lightning.distributions.categorical import UniformCategorical
from vae_lightning.distributions.posteriors import REAL, Latents
from vae_lightning.distributions.priors import StandardNormal
from vae_lightning.errors import UserError
from vae_lightning.explore.graph import export_graph, pack
from vae_lightning.explore.traversal import dimension_use
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.code_prior import CodePrior
from vae_lightning.models.d_vae import DVAE
from vae_lightning.models.discrete import CodeModel, DiscreteModel
from vae_lightning.models.hierarchy import Hierarchy
from vae_lightning.models.image_model import Labels
from vae_lightning.models.inference import GenerativeModel
from vae_lightning.models.latent_variable_model import LatentVariableModel
from vae_lightning.models.vq_vae import VQVAE
from vae_lightning.nets.quantizers import SimVQ, VectorQuantizer
from vae_lightning.plotting.codes import similar_colors
from vae_lightning.randomness import generator

_THUMBNAIL_VALUES = 2_000_000
"""Largest number of values of all originals in a page, which bounds its size."""

_COLLAPSED = 0.01
"""KL in nats, or variance, below which a dimension is folded away."""

_LIMIT = 4.0
"""Standard deviations of the prior, or of the latents, that a slider reaches."""

_SAMPLES = 200
"""Number of samples from a prior that is not N(0, I), of all classes together."""

_PALETTE_COLUMNS = 16

_SCRIPTS = (
    *("interpreter.js", "networks.js", "motion.js", "latent.js", "plot.js"),
    *("drawing.js", "start.js"),
)
"""Scripts of the page; each uses those before it when it is read."""

_CHUNK = 250


class _Decoder(nn.Module):
    """The mean of p(x|z) as a function of a latent."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        model = self.model
        if isinstance(model, Hierarchy):
            return model.mean_image(model.decode_noise(z, condition))
        if isinstance(model, DVAE):
            return model.mean_image(model.decode_vectors(z, condition))
        return model.mean_image(model.decoder(z, condition))


class _Encoder(nn.Module):
    """What an image is encoded to: a vector, scores of categories, or vectors near codes."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        model = self.model
        if isinstance(model, DiscreteModel) and not _has_nearest_codes(model):
            raise UserError("its codes are not the nearest ones of a codebook")
        if isinstance(model, LatentVariableModel) and not _is_categorical(model):
            return _vector(model, model.posterior(x, condition).point_estimate, condition)
        scores: Tensor = model.encoder(x, condition)
        return scores


def _vector(model: GenerativeModel, z: Latents, condition: Tensor | None) -> Tensor:
    """Return latents as vectors, (B, D).

    A hierarchy is that of its generative process: the top level, and the noise of the levels below.
    With the noise kept, a change of the top level changes the whole image, and images are
    reconstructed as the model does.
    """
    if isinstance(z, Tensor):
        return z
    assert isinstance(model, Hierarchy)
    return model.to_noise(z, condition)


class _Space(NamedTuple):
    """The latents of images, as the page moves through them.

    Attributes:
        kind: ``vector``, ``categorical`` or ``codes``.
        latents: (N, L): numbers, or indices of categories or codes.
        decoder_input: What the decoder takes for the first image, (1, ...).
        fields: Further data for the page.
    """

    kind: str
    latents: Tensor
    decoder_input: Tensor
    fields: dict[str, Any]


def explorer(
    model: GenerativeModel,
    x: Tensor,
    y: Tensor | None = None,
    *,
    class_names: Sequence[str] = (),
    names: Sequence[str] | None = None,
    title: str = "",
    what: str = "images",
    footer: str = "",
    binary: bool = False,
    background: str = "black",
    seed: int = 0,
) -> str:
    """Return a page in which a model is explored by hand: one HTML file that needs no network.

    It has a slider for each latent dimension (or a map of codes, or a table of categories), the
    decoded image, the latents of images, and a place for an image of one's own, which is encoded in
    the page. The networks run in the browser, with weights in half precision. The originals are
    embedded for the first images only, up to two million values of pixels; those of the others are
    decoded.

    Args:
        model: The model.
        x: Images in [0, 1] whose latents are shown, (N, C, H, W). The page starts at the first.
        y: Their classes, (N,), -1 where unknown; needed for conditional models.
        class_names: Names of the classes.
        names: Names of the images, shown with the originals.
        title: Title of the page, by default the name of the model.
        what: What the images are, for the subtitle.
        footer: First sentence of the last line.
        binary: Whether the model was trained on binary pixels, to which own images are rounded.
        background: Color behind own images, such as ``white`` or ``#ff8000``.
        seed: Seed of samples from the prior.

    Returns:
        The text of the file.

    Raises:
        UnknownOperatorError: If the page cannot run an operator of the decoder.
        UserError: If the model has images of two channels or more than three, or latents that the
            page does not know, or there are no images.

    Example:
        >>> from vae_lightning import VAE
        >>> explorer(VAE(latent_dim=2), torch.rand(5, 1, 28, 28))[:15]
        '<!doctype html>'
    """
    if model.image_shape[0] not in (1, 3):
        raise UserError(f"images of {model.image_shape[0]} channels cannot be shown in a page")
    if not len(x):
        raise UserError("there are no images to explore")
    if model.conditional and not model.needs_labels:
        inferred = model.labels_for(x, y)
        y = inferred if y is None or inferred is None else torch.where(y < 0, inferred.cpu(), y)
    if model.needs_labels and (y is None or y.lt(0).any()):
        raise UserError(
            f"this {type(model).__name__} is conditional: give the classes of the images"
        )
    if model.to_device_dtype(x[:1]).dtype != torch.float32:
        model = copy.deepcopy(model).float()
    title = title or type(model).__name__
    prior = model if isinstance(model, CodeModel) else None
    model = model.autoencoder if isinstance(model, CodePrior) else model
    with model.inference():
        space = _space(model, x, y, seed, prior)
        first = y[:1] if y is not None else None
        condition = model.encode_labels(first if model.conditional else None, 1)
        given = () if condition is None else (condition.cpu(),)
        decoder = export_graph(_Decoder(model), space.decoder_input, *given)
        try:
            encoder = export_graph(_Encoder(model), x[:1], *given)
            missing = ""
        except UserError as error:
            encoder, missing = None, f" Without images of your own, because {error}."
        rounded = space.decoder_input.half().float()  # as the page has it
        on_device = [part.to(model.device) for part in (rounded, *given)]
        probe = _Decoder(model)(*on_device).mul(1e5).round().div(1e5)
        encoded = None if encoder is None else _Encoder(model)(probe, *on_device[1:])
    data = {
        "title": title,
        "subtitle": f"{_described(space)} \N{MIDDLE DOT} {len(x):,} {what}",
        "footer": f"{footer}{missing}".strip(),
        "kind": space.kind,
        "image": list(model.image_shape),
        "classes": list(class_names) or [str(i) for i in range(model.num_classes)],
        "conditional": model.conditional,
        "binary": binary,
        "background": background,
        "canSample": (prior or model).has(Capability.SAMPLES),
        "decoder": decoder,
        "encoder": encoder,
        "latents": pack(space.latents),
        "labels": None if y is None else y.tolist(),
        "names": None if names is None else list(names),
        "thumbnails": _thumbnails(x),
        "probe": {
            "latent": space.latents[0].float().half().tolist(),
            "label": int(first) if model.conditional and first is not None else 0,
            "image": probe.flatten().tolist(),
            "encoded": [] if encoded is None else encoded.flatten().tolist(),
        },
        **space.fields,
    }
    return _fill(title, data)


def _fill(title: str, data: dict[str, Any]) -> str:
    """Return the page with its data."""
    folder = files("vae_lightning.explore") / "page"
    page, style, *scripts = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("page.html", "style.css", *_SCRIPTS)
    )
    # "<" could end the element that holds the data.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "style": style,
        "scripts": "\n".join(scripts),
        "data": text,
    }
    # In one pass, because a title or a name may look like a place for another part.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def _described(space: _Space) -> str:
    if space.kind == "categorical":
        size, categories = space.latents.shape[1], space.fields["categories"]
        return f"{size} variables of {categories} categories"
    if space.kind == "codes":
        rows, columns = space.fields["map"]
        codes = space.fields["codebook"]["shape"][0]
        return f"{rows} x {columns} codes of a codebook of {codes}"
    size = len(space.fields["use"])
    return f"{size} latent dimensions, {size - len(space.fields['collapsed'])} in use"


def _space(
    model: GenerativeModel, x: Tensor, y: Tensor | None, seed: int, prior: CodeModel | None
) -> _Space:
    """Return the latents of images, and what the page needs to know about them."""
    if isinstance(model, DiscreteModel):
        return _codes(model, x, y, seed, prior)
    if not isinstance(model, LatentVariableModel):
        raise UserError(f"the page does not know the latents of a {type(model).__name__}")
    if _is_categorical(model):
        return _categories(model, x, y, seed)
    if model.prior.support != REAL:
        raise UserError(
            "the page moves latents along their dimensions, and this "
            f"{type(model).__name__} has {model.prior.support}: use vae interpolate or vae sample"
        )
    return _vectors(model, x, y, seed)


def _is_categorical(model: GenerativeModel) -> bool:
    return isinstance(getattr(model, "prior", None), UniformCategorical)


def _labels(model: GenerativeModel, y: Tensor | None, here: slice) -> Labels:
    return None if y is None or not model.conditional else y[here]


def _chunks(n: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, n, _CHUNK)]


def _vectors(model: LatentVariableModel, x: Tensor, y: Tensor | None, seed: int) -> _Space:
    """Return continuous latents, of which the first `Prior.latent_dim` have a slider."""
    parts = []
    for here in _chunks(len(x)):
        label = _labels(model, y, here)
        condition = model.encode_labels(label, len(x[here]))
        parts.append(_vector(model, model.embed(x[here], label), condition).float().cpu())
    latents = torch.cat(parts)
    moved = latents[:, : model.prior_dim]
    if model.has(Capability.KL_PER_DIMENSION):
        parts = [
            dimension_use(model, x[here], _labels(model, y, here))[0] * len(x[here])
            for here in _chunks(len(x))
        ]
        use, unit = torch.stack(parts).sum(0) / len(x), "KL in nats"
    else:
        use, unit = moved.var(0, correction=0), "variance"
    middle, reach = torch.zeros(model.prior_dim), torch.full((model.prior_dim,), _LIMIT)
    samples = None
    if not isinstance(model.prior, StandardNormal):
        middle, reach = moved.mean(0), _LIMIT * moved.std(0, correction=0).clamp(min=1e-3)
        drawn = _prior_samples(model, seed)
        noise = torch.randn(
            len(drawn), latents.shape[1] - len(middle), generator=generator(seed, "below")
        )
        samples = pack(torch.cat([drawn, noise], 1))
    reach = torch.maximum(reach, (moved - middle).abs().amax(0))
    note = ""
    if isinstance(model, Hierarchy):
        note = "These are the dimensions of the top level. Every level below keeps its noise."
    collapsed = (use < _COLLAPSED).nonzero()[:, 0].tolist()
    return _Space(
        "vector",
        latents,
        latents[:1],
        {
            "use": [round(value, 4) for value in use.tolist()],
            "unit": unit,
            "note": note,
            "low": (middle - reach).tolist(),
            "high": (middle + reach).tolist(),
            "middle": nn.functional.pad(middle, (0, latents.shape[1] - len(middle))).tolist(),
            "collapsed": collapsed if len(collapsed) < len(use) else [],
            "samples": samples,
        },
    )


def _prior_samples(model: LatentVariableModel, seed: int) -> Tensor:
    """Return samples of the prior, (N, L), with those of a class after each other."""
    condition = None
    if model.conditional:
        each = -(-_SAMPLES // model.num_classes)
        classes = torch.arange(model.num_classes).repeat_interleave(each)
        condition = model.encode_labels(classes, len(classes))
    n = _SAMPLES if condition is None else len(condition)
    samples: Tensor = model.prior.sample(n, condition, generator(seed, "explorer"))
    return samples.cpu()


def _categories(model: LatentVariableModel, x: Tensor, y: Tensor | None, seed: int) -> _Space:
    """Return the categories of categorical variables, one-hot vectors as indices."""
    assert isinstance(model.prior, UniformCategorical)
    k = model.prior.num_categories
    one_hot = []
    for here in _chunks(len(x)):
        z = model.embed(x[here], _labels(model, y, here))
        assert isinstance(z, Tensor)
        one_hot.append(z.float().cpu())
    vectors = torch.cat(one_hot)
    drawn = _prior_samples(model, seed)
    return _Space(
        "categorical",
        vectors.unflatten(1, (-1, k)).argmax(2),
        vectors[:1],
        {
            "categories": k,
            "samples": pack(drawn.unflatten(1, (-1, k)).argmax(2)),
            **_projected(vectors),
        },
    )


def _has_nearest_codes(model: DiscreteModel) -> bool:
    """Return whether a code is the nearest one to what the encoder says, as the page assumes."""
    return isinstance(model, VQVAE) and isinstance(model.quantizer, VectorQuantizer | SimVQ)


def _codes(
    model: DiscreteModel, x: Tensor, y: Tensor | None, seed: int, prior: CodeModel | None
) -> _Space:
    """Return the codes of maps, and samples of them from a prior."""
    maps = model.code_maps
    if len(maps) > 1 or maps[0].shape[2] > 1:
        raise UserError(
            "the page shows one map with one code per position, and this "
            f"{type(model).__name__} has {len(maps)} maps with {maps[0].shape[2]} per position"
        )
    codes = torch.cat([_map(model, x[here], _labels(model, y, here)) for here in _chunks(len(x))])
    vectors = next(iter(model.codebooks.values())).detach().float().cpu()
    colors = similar_colors(vectors) if len(vectors) > 1 else [[128, 128, 128]]
    fields = {
        "map": list(codes.shape[1:]),
        "codebook": pack(vectors),
        "colors": [f"rgb({r} {g} {b})" for r, g, b in colors],
        "palette": _palette(vectors),
        **_projected(vectors[codes].flatten(1, 2).mean(1)),
    }
    drawn = None
    if prior is not None:
        n, condition = _SAMPLES, None
        if prior.conditional:
            each = -(-_SAMPLES // prior.num_classes)
            classes = torch.arange(prior.num_classes).repeat_interleave(each)
            n, condition = len(classes), prior.encode_labels(classes, len(classes))
        (drawn,) = prior.sample_codes(n, condition, generator(seed, "explorer"))
    elif isinstance(model, DVAE):
        drawn = torch.randint(len(vectors), (_SAMPLES, *maps[0].dims), generator=generator(seed))
    if drawn is not None:
        fields["samples"] = pack(drawn.flatten(1).cpu())
    return _Space("codes", codes.flatten(1), vectors[codes[:1]].movedim(-1, 1), fields)


def _map(model: DiscreteModel, x: Tensor, label: Labels) -> Tensor:
    """Return the codes of images, (B, h, w)."""
    codes = model.encode_indices(x, label)
    assert isinstance(codes, Tensor)
    return codes.cpu()


def _palette(vectors: Tensor) -> list[int]:
    """Return codes in rows of similar ones.

    They are sorted by the first principal component, and each row by the second.
    """
    if min(vectors.shape) < 2:
        return vectors[:, 0].argsort().tolist()
    points, _ = plotting.principal_components(vectors)
    rows = points[:, 0].argsort().split(_PALETTE_COLUMNS)
    return torch.cat([row[points[row, 1].argsort()] for row in rows]).tolist()


def _projected(vectors: Tensor) -> dict[str, Any]:
    """Return the first two principal components of vectors (N, D), for the plot."""
    if min(vectors.shape) < 2:
        points = nn.functional.pad(vectors[:, :1], (0, 1))
        shares = [1.0, 0.0]
    else:
        points, explained = plotting.principal_components(vectors)
        shares = [float(share) for share in explained[:2]]
    bounds = points.abs().amax(0).clamp(min=1e-6) * 1.05
    return {
        "points": pack(points),
        "span": [[-float(bound), float(bound)] for bound in bounds],
        "axes": [f"principal component {i + 1} ({share:.1%})" for i, share in enumerate(shares)],
    }


def _thumbnails(x: Tensor) -> dict[str, Any]:
    """Return originals in one picture, as a data URI: all, or the first ones if they are large."""
    x = x[: max(1, _THUMBNAIL_VALUES // x[0].numel())]
    n, channels, height, width = x.shape
    columns = max(1, min(n, 4096 // width))
    rows = -(-n // columns)
    levels = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    levels[:n] = x.mul(255).round().clamp(0, 255).byte()
    grid = levels.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)
    picture = grid.reshape(channels, rows * height, columns * width)
    pixels = picture[0] if channels == 1 else picture.movedim(0, -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, "PNG", optimize=True)
    uri = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/png;base64,{uri}", "columns": columns, "count": n}
