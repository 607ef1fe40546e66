"""``vae udr``: whether several trainings find the same latents."""

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vae_lightning import explore
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.compare import check_data, names_of, varied_settings
from vae_lightning.cli.explore.finished_runs import FinishedRun, find, folder_of_all
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.cli.rate_distortion import is_seed
from vae_lightning.cli.sweep_file import comparable, value_text
from vae_lightning.errors import UserError
from vae_lightning.models.capabilities import Capability

_INFORMATIVE = 0.01
"""KL in nats above which a latent is informative; without one, variance of the posterior mean."""


@dataclass(frozen=True)
class _Group:
    """Runs that differ in nothing but the seed, and the settings that they share."""

    setting: dict[str, Any]
    runs: list[FinishedRun] = field(default_factory=list)
    models: list[Trained] = field(default_factory=list)


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "udr",
        "Score models by unsupervised disentanglement ranking (Duan et al., 2020): whether\n"
        "trainings with other seeds find the same latents. Of a sweep, those models are\n"
        "compared that differ in nothing but the seed.",
        "vae udr runs/beta_vae_sweep",
        several=True,
    )
    made.add_argument("--split", choices=items.SPLITS, default="test", help="(test)")
    made.add_argument("--root", metavar="FOLDER", help="where the data are now")
    made.add_argument("--n", type=positive, default=10_000, help="number of images (10000)")
    made.add_argument(
        "--similarity",
        choices=["spearman", "lasso"],
        default="spearman",
        help="of two latents: rank correlation, or weight in a sparse regression (spearman)",
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Score the models, and write tables."""
    runs = find(options.checkpoints)
    loaded = [Trained.load(options, str(run.checkpoint)) for run in runs]
    groups = _groups(runs, loaded)
    # The results of checkpoints go to the run of the first one.
    outputs = Outputs(options, folder_of_all(runs) or loaded[0].held, "udr", (".csv",))
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    first = groups[0].models[0]
    for group in groups:
        models, setting = group.models, group.setting
        for trained in models:
            trained.model.require(Capability.CONTINUOUS_LATENT)
            check_data(first, trained, options.split)
        names = [member.name for member in group.runs]
        if not all(names):
            names = names_of(models)
        latents, informative = zip(*(_latents(model, options) for model in models), strict=True)
        scores, of_pairs = explore.udr(latents, informative, options.similarity)
        for name, mask, score in zip(names, informative, scores.tolist(), strict=True):
            row = {"model": name, **setting, "informative": int(mask.sum()), "udr": score}
            rows.append(row)
        pairs += [
            {"model": names[j], "other": names[i], "udr": of_pairs[i, j].item()}
            for j in range(len(names))
            for i in range(len(names))
            if i != j
        ]
        _print(setting, rows[-len(names) :])
    outputs.table("udr", sorted(rows, key=lambda row: -row["udr"]))
    if outputs.file is None:
        outputs.table("pairs", pairs)
    outputs.report()


def _groups(runs: list[FinishedRun], models: list[Trained]) -> list[_Group]:
    """Group the runs of the same settings: those of a sweep, else those of the models.

    Raises:
        UserError: If there are no two of the same settings.
    """
    groups: dict[str, _Group] = {}
    for run, trained, varied in zip(runs, models, varied_settings(models), strict=True):
        parameters = run.parameters or varied
        setting = {k: v for k, v in parameters.items() if not is_seed(k)}
        key = [str(run.folder), *setting, *map(comparable, setting.values())]
        group = groups.setdefault(repr(key), _Group(setting))
        group.runs.append(run)
        group.models.append(trained)
    kept = [group for group in groups.values() if len(group.runs) > 1]
    if not kept:
        raise UserError(
            "UDR compares at least two trainings with the same settings and other seeds: give "
            "their checkpoints, or a sweep over seed_everything"
        )
    return kept


def _latents(trained: Trained, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return the posterior means of the images, (N, L), and which latents are informative."""
    model = trained.model
    given = items.RunData(options.split, trained, options.root)
    means, kl = [], torch.zeros(0)
    for part in given.parts(options.batch_size, "udr", given.some(options.n)):
        label = items.labels_of(part, None, trained)
        x = part.x.to(model.device)
        means.append(model.latent_vectors(x, label).float().cpu())
        if model.has(Capability.KL_PER_DIMENSION):
            here = model.latent_kl(x, label).double().sum(0).cpu()
            kl = here if not len(kl) else kl + here
    z = torch.cat(means)
    measured = kl / len(z) if len(kl) else z.double().var(0)
    return z, measured > _INFORMATIVE


def _print(setting: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    if setting:
        print(", ".join(f"{name} {value_text(value)}" for name, value in setting.items()))
    for row in sorted(rows, key=lambda row: -row["udr"]):
        print(f"  {row['model']:<40} {row['udr']:.3f}   {row['informative']} informative latents")
    mean = sum(row["udr"] for row in rows) / len(rows)
    print(f"  {'mean':<40} {mean:.3f}   {len(rows)} models", flush=True)
    if len(rows) == 2:
        print("  Note: two models may agree by chance: train with more seeds", flush=True)
    if not all(row["informative"] for row in rows):
        print("  Note: without informative latents, a score is 0 by definition", flush=True)
