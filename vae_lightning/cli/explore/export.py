"""``vae export``: a folder with a model that is used without its checkpoint."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from vae_lightning import checkpoint, explore, plotting
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.cli.run_folders import folder_of
from vae_lightning.errors import UserError
from vae_lightning.explore import exporting
from vae_lightning.explore.model_card import model_card
from vae_lightning.files import atomic_write_text
from vae_lightning.models.capabilities import Capability

_FORMATS = ("onnx", "pt2")
_SAMPLES = 50
_RECONSTRUCTIONS = 24


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "export",
        "Write a folder with a model: weights as safetensors, settings, a model card, and encoder\n"
        "and decoder as ONNX files and exported programs. vae_lightning.load(FOLDER) reads it.",
        "vae export --ckpt_path runs/vae/version_0/checkpoints/best.ckpt --out my_vae\n"
        "  hf upload USER/NAME my_vae",
    )
    made.add_argument(
        "--formats",
        nargs="*",
        choices=_FORMATS,
        metavar="FORMAT",
        help="of the networks beside safetensors: onnx, pt2 (both), or nothing for neither",
    )
    made.add_argument("--root", metavar="FOLDER", help="where the run's data are now")
    return made


def run(options: argparse.Namespace) -> None:
    """Write the folder."""
    trained = Trained.load(options)
    model = trained.model.cpu()
    formats = list(_FORMATS if options.formats is None else options.formats)
    if "onnx" in formats and (missing := exporting.missing_packages()):
        text = f"ONNX files need {', '.join(missing)}: pip install 'vae-lightning[export]'"
        if options.formats is not None:
            raise UserError(text)
        formats.remove("onnx")
        print(f"Note: without ONNX files ({text})")
    outputs = Outputs(options, trained.held, "export", ())
    if outputs.folder == trained.held.path:
        raise UserError(f"{outputs.folder} is the exported model itself: give another --out")
    outputs.folder.mkdir(parents=True, exist_ok=True)
    exporting.write_weights(model, trained.held.record, outputs.folder)
    files = [checkpoint.WEIGHTS_FILE, checkpoint.CONFIG_FILE, *_networks(trained, formats, outputs)]
    pictures = _pictures(trained, options, outputs)
    card = model_card(model, trained.held.record, _report(trained), files=files, pictures=pictures)
    for file in files:
        outputs.path(file)
    atomic_write_text(outputs.path("README.md"), card)
    outputs.report()


def _networks(trained: Trained, formats: list[str], outputs: Outputs) -> list[str]:
    """Write encoder and decoder, and return the names of the files."""
    writers: dict[str, Any] = {"onnx": exporting.export_onnx, "pt2": exporting.export_program}
    written, differences = [], []
    for suffix in formats:
        for name in ("encoder", "decoder"):
            path = outputs.folder / f"{name}.{suffix}"
            try:
                differences.append(writers[suffix](trained.model, name, path))
            except UserError as error:
                path.unlink(missing_ok=True)
                print(f"Note: without {path.name}: {error}")
                continue
            written.append(path.name)
    if differences:
        print(f"Largest difference of the exported networks from the model: {max(differences):.1e}")
    return written


def _pictures(trained: Trained, options: argparse.Namespace, outputs: Outputs) -> dict[str, str]:
    """Draw samples, and reconstructions if there are images; return captions by file name."""
    model, found = trained.model, {}
    if model.has(Capability.SAMPLES):
        images = explore.sample(model, _SAMPLES, seed=options.seed)
        outputs.figure("samples", plotting.image_grid(model.to_picture(images)))
        found["samples.png"] = "Samples"
    try:
        data = items.RunData("test", trained, options.root)
        part = data.read(data.some(_RECONSTRUCTIONS))
        label = items.labels_of(part, None, trained)
    except UserError as error:
        print(f"Note: without a picture of reconstructions ({error})")
        return found
    with torch.no_grad():
        again = model.reconstruct(part.x, label)
    pictures = model.to_picture(part.x), model.to_picture(again)
    outputs.figure("reconstructions", plotting.reconstructions(*pictures))
    found["reconstructions.png"] = "Test images and their reconstructions"
    return found


def _report(trained: Trained) -> dict[str, Any] | None:
    """Return what ``vae test`` has reported about this checkpoint, None if it has not."""
    path = folder_of(trained.held) / "test" / "metrics.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tested = Path(report["checkpoint"]).name
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if tested == trained.held.path.name else None
