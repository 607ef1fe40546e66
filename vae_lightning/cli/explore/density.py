"""``vae density fit``: fit a density to the latents of a finished model."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained, positive, short
from vae_lightning.errors import UserError
from vae_lightning.explore.densities import DENSITIES, draw_latents, fit_density, save_density
from vae_lightning.files import expand
from vae_lightning.models.capabilities import Capability
from vae_lightning.models.latent_variable_model import LatentVariableModel


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "density",
        "Fit a density to the latents of the training images, and keep it beside the checkpoint.\n"
        "vae sample --density uses it instead of the prior.",
        "vae density fit --ckpt_path runs/wae/version_0/checkpoints/best.ckpt --kind gmm\n"
        "  vae sample --ckpt_path runs/wae/version_0/checkpoints/best.ckpt --density gmm",
    )
    made.add_argument("action", choices=("fit",), help="what to do: fit")
    made.add_argument(
        "--kind",
        choices=tuple(DENSITIES),
        default="gmm",
        help="mixture of Gaussians, autoregressive flow, or second-stage VAE (gmm)",
    )
    made.add_argument(
        "--components", type=positive, metavar="K", help="number of Gaussians of a gmm (10)"
    )
    made.add_argument("--root", metavar="FOLDER", help="where the run's data are now")
    return made


def run(options: argparse.Namespace) -> None:
    """Fit the density, and write it."""
    trained = Trained.load(options)
    model = trained.model
    model.require(Capability.CONTINUOUS_LATENT)
    path = _path(options, trained)
    settings: dict[str, Any] = {}
    if options.components is not None:
        if options.kind != "gmm":
            raise UserError(f"--components has no effect on --kind {options.kind}: leave it out")
        settings["components"] = options.components
    z, label = _latents("train", trained, options)
    num_classes = model.num_classes if model.conditional else 0
    density = fit_density(
        options.kind, z, label, num_classes=num_classes, seed=options.seed, **settings
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_density(density, path, model)
    print(f"Fitted a {options.kind} to the latents of {len(z):,} training images")
    z, label = _latents("val", trained, options)
    lines = {options.kind: density.log_prob(z, label)}
    samples = model.has(Capability.SAMPLES)
    if samples and isinstance(model, LatentVariableModel) and model.prior.has_density:
        with model.inference():
            condition = model.encode_labels(label, len(z))
            lines["the prior"] = model.log_prior(z[:, None].to(model.device), condition).cpu()[:, 0]
    for name, log_prob in lines.items():
        error = log_prob.std() / len(log_prob) ** 0.5
        print(
            f"  log density of {len(z):,} validation latents under {name}: "
            f"{log_prob.mean():.2f} \N{PLUS-MINUS SIGN} {error:.2f} nats"
        )
    print(f"Wrote {short(path)}")


def density_path(checkpoint: Path, kind: str) -> Path:
    """Return where the density of a checkpoint is kept: beside it, such as ``best.gmm.pt``."""
    return checkpoint.with_name(f"{checkpoint.stem}.{kind}.pt")


def _path(options: argparse.Namespace, trained: Trained) -> Path:
    """Return the file to write."""
    path = density_path(trained.held.path, options.kind)
    if options.out is not None:
        path = expand(options.out)
        if path.is_dir():
            path /= f"{trained.held.path.stem}.{options.kind}.pt"
        elif path.suffix != ".pt":
            raise UserError(f"--out {path}: vae density fit writes .pt, or into a folder")
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} is already there: give another --out, or --overwrite")
    return path


def _latents(
    split: str, trained: Trained, options: argparse.Namespace
) -> tuple[Tensor, Tensor | None]:
    """Return draws from q(z|x) of a split, (N, L), and for conditional models the classes."""
    model = trained.model
    data = items.RunData(split, trained, options.root)
    z, classes = [], []
    for part in data.parts(options.batch_size, "encode"):
        label = items.labels_of(part, None, trained, decodes=True)
        z.append(draw_latents(model, part.x, label, indices=part.positions, seed=options.seed))
        if isinstance(label, Tensor):
            classes.append(label)
    return torch.cat(z), torch.cat(classes) if classes else None
