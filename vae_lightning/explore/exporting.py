"""Export a model: weights without pickle, and networks as ONNX files and as exported programs."""

import copy
import dataclasses
import hashlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning import __version__
from vae_lightning.checkpoint import (
    CONFIG_FILE,
    RECORD_KEY,
    WEIGHTS_DIGEST,
    WEIGHTS_FILE,
    TrainingRecord,
)
from vae_lightning.errors import UserError
from vae_lightning.files import atomic_write_text
from vae_lightning.models.code_prior import CodePrior
from vae_lightning.models.discrete import (
    CodeMap,
    DiscreteModel,
    flatten_codes,
    unflatten_codes,
)
from vae_lightning.models.hierarchy import Hierarchy
from vae_lightning.models.inference import GenerativeModel

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra ``export``."""

_LARGEST_DIFFERENCE = 1e-3
"""Difference from the model above which an exported network is wrong."""


class EncoderNetwork(nn.Module):
    """What `embed` computes: x -> z, or x -> codes for a model with codes.

    Of a hierarchy, z are the levels from which the image is decoded, the lowest first.

    Args:
        model: The model.
    """

    output = "z"

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model
        if isinstance(model, DiscreteModel):
            self.output = "codes"

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return latents (B, L) of images (B, C, H, W), or codes.

        Codes are (B, h, w), (B, h, w, depth), or those of several levels as one sequence (B, N).
        """
        model: Any = self.model
        if isinstance(model, DiscreteModel):
            levels = model.codes(x, condition)
            return levels[0] if len(levels) == 1 else flatten_codes(levels)
        z = model.posterior(x, condition).point_estimate
        if isinstance(model, Hierarchy):
            z = torch.cat(z[: len(model.decoded_sizes)], 1)
        assert isinstance(z, Tensor)
        return z


class DecoderNetwork(nn.Module):
    """What `decode` computes: z, or codes -> the mean of p(x|z).

    Args:
        model: The model.
        maps: Its maps of codes, if it has any.
    """

    output = "x"

    def __init__(self, model: GenerativeModel, maps: tuple[CodeMap, ...] = ()) -> None:
        super().__init__()
        self.model, self.maps = model, maps

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) of latents or codes as `EncoderNetwork` returns them."""
        model, latents = self.model, z
        if isinstance(model, DiscreteModel):
            levels = (z,) if len(self.maps) == 1 else unflatten_codes(z, self.maps)
            vectors = model.lookup(levels)
            if len(vectors) > 1:
                return model.mean_image(model.likelihood_params(vectors, condition))
            latents = vectors[0]
        if isinstance(model, Hierarchy):
            levels = z.split(model.decoded_sizes, 1)
            return model.mean_image(model.likelihood_params(levels, condition))
        return model.mean_image(model.decoder(latents, condition))


def write_weights(model: GenerativeModel, record: TrainingRecord, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json``, from which `vae_lightning.load` builds it.

    The paths of the machine that trained it are left out.

    Args:
        model: The model.
        record: How it was trained.
        folder: The folder.
    """
    from safetensors.torch import save

    weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    written = save(weights, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).write_bytes(written)
    data = record.data
    if data is not None:
        arguments = {k: v for k, v in data.get("init_args", {}).items() if k != "root"}
        data = {**data, "init_args": arguments}
    kept = dataclasses.replace(record, data=data, run=None, random_states=[], code_counts={})
    config = {
        "library_name": "vae_lightning",
        "library_version": __version__,
        "architectures": [type(model).__name__],
        WEIGHTS_DIGEST: hashlib.sha256(written).hexdigest(),
        RECORD_KEY: kept.to_dict(),
    }
    atomic_write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def network_of(model: GenerativeModel, name: str) -> EncoderNetwork | DecoderNetwork:
    """Return the ``encoder`` or the ``decoder`` of a model without the weights of the other one.

    An encoder that goes through the decoder, as that of a hierarchy may, keeps its weights.

    Those of a `CodePrior` are those of its autoencoder.
    """
    model = _autoencoder(model)
    maps = model.code_maps if isinstance(model, DiscreteModel) else ()
    alone = copy.deepcopy(model).eval()
    if name == "encoder":
        if not (isinstance(model, Hierarchy) and model.encodes_with_decoder):
            alone.decoder = nn.Identity()
        return EncoderNetwork(alone)
    alone.encoder = nn.Identity()
    return DecoderNetwork(alone, maps)


def _autoencoder(model: GenerativeModel) -> GenerativeModel:
    return model.autoencoder if isinstance(model, CodePrior) else model


def example_inputs(model: GenerativeModel, name: str, n: int) -> dict[str, Tensor]:
    """Return inputs of a network of `network_of` by name, for ``n`` images."""
    model = _autoencoder(model)
    x = torch.rand(n, *model.image_shape, generator=torch.Generator().manual_seed(0))
    inputs = {"x": x}
    with model.inference():
        condition = model.encode_labels(model.cycle_labels(n), n)
        if name == "decoder":
            encoder = EncoderNetwork(model)
            inputs = {encoder.output: encoder(x, condition)}
    if condition is not None:
        inputs["condition"] = condition
    return inputs


def export_program(model: GenerativeModel, name: str, path: Path) -> float:
    """Write a network as a program of ``torch.export``, with any batch size.

    Args:
        model: The model, on the CPU.
        name: ``encoder`` or ``decoder``.
        path: The file, ``.pt2``.

    Returns:
        The largest difference from the model.

    Raises:
        UserError: If the network cannot be exported, or the program differs from the model.
    """
    network, inputs = network_of(model, name), example_inputs(model, name, 2)
    batch = torch.export.Dim("batch")
    with model.inference(), _quiet(name):
        program = torch.export.export(
            network, tuple(inputs.values()), dynamic_shapes=tuple({0: batch} for _ in inputs)
        )
        torch.export.save(program, path)
        again = torch.export.load(path).module()
        return _compare(model, name, lambda given: again(*given.values()), path)


def export_onnx(model: GenerativeModel, name: str, path: Path) -> float:
    """Write a network as an ONNX file, with any batch size.

    Args:
        model: The model, on the CPU.
        name: ``encoder`` or ``decoder``.
        path: The file, ``.onnx``.

    Returns:
        The largest difference between onnxruntime and the model.

    Raises:
        UserError: If the network cannot be exported, or the file differs from the model.
    """
    import onnxruntime

    network, inputs = network_of(model, name), example_inputs(model, name, 2)
    batch = torch.export.Dim("batch")
    with model.inference(), _quiet(name):
        torch.onnx.export(
            network,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[network.output],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(given: dict[str, Tensor]) -> Tensor:
            arrays = {key: value.numpy() for key, value in given.items()}
            return torch.from_numpy(session.run(None, arrays)[0])

        return _compare(model, name, run, path)


def missing_packages() -> list[str]:
    """Return the packages that ONNX files need and that are not installed."""
    return [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def _compare(model: GenerativeModel, name: str, run: Any, path: Path) -> float:
    """Return the largest difference from the model for two batch sizes."""
    network, worst = network_of(model, name), 0.0
    for n in (1, 5):
        inputs = example_inputs(model, name, n)
        difference = run(inputs).float() - network(*inputs.values()).float()
        worst = max(worst, difference.abs().max().item())
    if not worst <= _LARGEST_DIFFERENCE:
        raise UserError(f"{path} differs from the model by {worst:.1e}: do not use it")
    return worst


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Turn errors of an exporter into a sentence, and keep its warnings from the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # whatever the code of a network may raise when it is traced
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the {name} cannot be exported ({reason})") from error
    finally:
        logger.setLevel(level)
