"""``vae fit --init_from``: start a new training from the weights of another one."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from vae_lightning.checkpoint import Checkpoint
from vae_lightning.cli.run_folders import short
from vae_lightning.errors import UserError
from vae_lightning.models.image_model import ImageModel
from vae_lightning.models.loading import build


def load_weights(held: Checkpoint, model: ImageModel, class_names: Sequence[str] | None) -> str:
    """Load the weights of a checkpoint into a new model, whose data may have other classes.

    The weights that belong to a class of a conditional model are matched by its name; those of new
    classes stay as they were initialized.

    Args:
        held: The checkpoint.
        model: The new model.
        class_names: Names of the classes of its data.

    Returns:
        A sentence about what was loaded.

    Raises:
        UserError: If the model is of another class, has images of another shape, or networks of
            other sizes.
    """
    name, asked = held.record.model["class_path"].rpartition(".")[2], type(model).__name__
    if name != asked:
        raise UserError(
            f"--init_from {held.path} holds a {name}, but the options ask for a {asked}: leave out "
            "--model and any --config that names another model"
        )
    settings = held.record.model["init_args"]
    if (shape := tuple(settings["image_shape"])) != model.image_shape:
        raise UserError(
            f"--init_from {held.path} is of a model of {shape} images, but the data have "
            f"{model.image_shape}: choose data of that shape, or for ImageFolder another "
            "--data.size or --data.color"
        )
    weights, new = held.weights, []
    if model.conditional:
        count = settings["num_classes"]
        before = held.record.class_names or [str(i) for i in range(count)]
        after = list(map(str, class_names or range(model.num_classes)))
        sources = [before.index(name) if name in before else None for name in after]
        new = [name for name in after if name not in before]
        if sources != list(range(count)):
            weights = _for_classes(held, model, sources)
    _check_sizes(held, weights, model)
    model.load_state_dict(weights)
    model.initialized = True
    text = f"Weights: those of {short(held.path)}"
    if new:
        shown = ", ".join(new[:10]) + (", ..." if len(new) > 10 else "")
        classes = "class" if len(new) == 1 else "classes"
        text += f", except of the new {classes} {shown}"
    return text


def _for_classes(
    held: Checkpoint, model: ImageModel, sources: Sequence[int | None]
) -> dict[str, Tensor]:
    """Return weights for other classes.

    Args:
        held: The checkpoint.
        model: The new model.
        sources: For each of its classes, the number of that class in the checkpoint, or None.
    """
    settings = held.record.model["init_args"]
    count = settings["num_classes"]
    # Which weights see the class, and where: those that grow with the number of classes.
    larger = {**settings, "num_classes": count + 1}
    grown = build({**held.record.model, "init_args": larger}, held.path).state_dict()
    fresh, weights = model.state_dict(), {}
    for name, value in held.weights.items():
        axis = next(
            (
                i
                for i, (a, b) in enumerate(zip(value.shape, grown[name].shape, strict=True))
                if a != b
            ),
            None,
        )
        if axis is None or name not in fresh:
            weights[name] = value
            continue
        # Classes come last, after the channels or features that an input has without them.
        shared = value.shape[axis] - count
        made = fresh[name].clone()
        if made.shape[axis] != shared + len(sources):
            weights[name] = value
            continue
        made.narrow(axis, 0, shared).copy_(value.narrow(axis, 0, shared))
        for i, source in enumerate(sources):
            if source is not None:
                kept = value.select(axis, shared + source)
                made.select(axis, shared + i).copy_(kept)
        weights[name] = made
    return weights


def _check_sizes(held: Checkpoint, weights: Mapping[str, Tensor], model: ImageModel) -> None:
    """Check that weights fit a model."""
    found = {name: tuple(value.shape) for name, value in weights.items()}
    needed = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong = sorted(n for n in found.keys() | needed.keys() if found.get(n) != needed.get(n))
    if wrong:
        raise UserError(
            f"the weights of --init_from {held.path} do not fit the model that the options "
            f"describe ({wrong[0]} differs): leave out options that change its size"
        )
