"""``vae score``: how surprising each image is."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lightning import explore, plotting
from vae_lightning.cli.explore import items
from vae_lightning.cli.explore.options import Parser, Trained, positive
from vae_lightning.cli.explore.outputs import Outputs
from vae_lightning.errors import UserError

_SHOWN = 10
"""Number of images in a row of the picture."""

WHICH = """\
which score:
  squared_error            finds what the model cannot draw: defects, objects of another kind
  negative_log_likelihood  finds what is unlikely as a whole; smooth images score low (likely)
                           under many models, whatever they show
  complexity_corrected     the same less the length of the image as a PNG file (--complexity),
                           which takes smoothness out; for likelihoods of 8-bit pixels only
  kl                       how much the latent says; alone, it is a poor score of anomaly
"""


def parser() -> Parser:
    """Return the parser of the command."""
    made = Parser(
        "score",
        "Score images: the most surprising first, with percentiles among the validation images.",
        "vae score --ckpt_path runs/vae/version_0/checkpoints/best.ckpt photos --sort squared_error"
        f"\n\n{WHICH}",
    )
    items.add_options(made)
    made.add_argument("--k", type=positive, default=64, help="importance samples of log p(x) (64)")
    made.add_argument("--sort", metavar="SCORE", help="by default log p(x), or the squared error")
    made.add_argument("--complexity", action="store_true", help="add complexity_corrected")
    made.add_argument(
        "--reference", type=int, default=1000, metavar="N", help="validation images (1000); or 0"
    )
    return made


def run(options: argparse.Namespace) -> None:
    """Score the images, and write a table, an array and a picture."""
    trained = Trained.load(options)
    label = trained.label(options.label)
    given = items.choose(options, trained)
    outputs = Outputs(options, trained.held, "score", (".csv", ".npz", ".png"))
    scores, places = _score(given, range(len(given)), options, trained, label)
    by = options.sort or next(
        name for name in ("negative_log_likelihood", "squared_error") if name in scores
    )
    note = ""
    likelihood = trained.model.likelihood
    name = type(likelihood).__name__
    if not trained.model.is_normalized(trained.is_binary):
        of_loss = [key for key in ("reconstruction", "negative_elbo") if key in scores]
        print(
            f"Note: {' and '.join(of_loss)} {'are those' if len(of_loss) > 1 else 'is that'} of a "
            f"{likelihood.loss_name} ({name}), not of a log-likelihood"
        )
    if options.complexity and likelihood.num_values != 256:
        print(
            "Note: the length of a PNG file is comparable with likelihoods of 8-bit pixels "
            f"(DiscretizedLogistic), not with a {name}"
        )
    percentiles: dict[str, Tensor] = {}
    if options.reference:
        try:
            reference = items.RunData("val", trained, options.root)
            chosen = reference.some(options.reference)
            known, _ = _score(reference, chosen, options, trained, None)  # in their own classes
            percentiles = {name: _percentiles(scores[name], known[name]) for name in scores}
        except UserError as error:
            note = f"Note: without percentiles ({error})"
    order = scores[by].argsort(descending=True)
    names = [given.name(i) for i in places.tolist()]
    rows = []
    for i in order.tolist():
        row: dict[str, Any] = {"name": names[i]}
        row |= {name: f"{value[i]:.6g}" for name, value in scores.items()}
        row |= {f"{name}_percentile": f"{v[i]:.1f}" for name, v in percentiles.items()}
        rows.append(row)
    outputs.table("scores", rows)
    outputs.arrays(
        "scores",
        {
            "name": names,
            **scores,
            **{f"{name}_percentile": value for name, value in percentiles.items()},
        },
    )
    if outputs.wants(".png"):
        _draw(outputs, places[order], by, given, trained, label)
    print(f"{len(names)} images of {given.what}, the most surprising first by {by}:")
    for row in rows[:5]:
        place = row.get(f"{by}_percentile")
        above = f", above {place} % of the validation images" if place else ""
        print(f"  {row['name']}: {row[by]}{above}")
    if note:
        print(note)
    items.report_failed(given)
    outputs.report()


def _score(
    given: items.Items,
    positions: Sequence[int],
    options: argparse.Namespace,
    trained: Trained,
    label: int | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the scores of items, and the positions of those that could be read."""
    parts: dict[str, list[Tensor]] = {}
    read: list[Tensor] = []
    for part in given.parts(options.batch_size, "score", positions):
        chosen = items.labels_of(part, label, trained)
        found = explore.score(
            trained.model,
            part.x,
            chosen,
            num_samples=options.k,
            seed=options.seed,
            indices=part.positions,
        )
        if options.complexity and "negative_log_likelihood" in found:
            corrected = found["negative_log_likelihood"] - explore.complexity(part.x)
            found["complexity_corrected"] = corrected
        if options.sort and options.sort not in found:
            raise UserError(f"--sort {options.sort}: there are the scores {', '.join(found)}")
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
        read.append(part.positions)
    return {name: torch.cat(values) for name, values in parts.items()}, torch.cat(read)


def _percentiles(values: Tensor, reference: Tensor) -> Tensor:
    """Return the share of reference values below each value, in percent."""
    return 100 * torch.searchsorted(reference.sort().values, values) / len(reference)


def _draw(
    outputs: Outputs,
    order: Tensor,
    by: str,
    given: items.Items,
    trained: Trained,
    label: int | None,
) -> None:
    """Draw the first and the last of ordered items, with maps of their errors."""
    n = max(1, min(_SHOWN, len(order) // 2))
    rows, names = [], []
    for what, chosen in (("most surprising", order[:n]), ("least surprising", order.flip(0)[:n])):
        part = given.read(chosen.tolist())
        labels = items.labels_of(part, label, trained)
        made = trained.model.reconstruct(part.x, labels).cpu()
        x, made = (trained.model.to_picture(images) for images in (part.x, made))
        rows += [x, made, (x - made).abs()]
        names += [what, "reconstruction", "error"]
    title = f"Highest and lowest {by.replace('_', ' ')} of {given.what}"
    outputs.figure("scores", plotting.image_rows(torch.stack(rows), names, title=title))
