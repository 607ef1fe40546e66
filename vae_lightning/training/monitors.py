"""Quantities that callbacks and schedulers follow."""

from collections.abc import Collection

import lightning.pytorch as pl

_KNOWN_PACKAGES = ("lightning.", "vae_lightning.")


def check_monitors(trainer: pl.Trainer, quantities: Collection[str]) -> None:
    """Check before the first batch that what is monitored will be there.

    Lightning would complain at the end of an epoch only.

    Args:
        trainer: The trainer.
        quantities: Names of what a validation logs; none if there was no sanity check.

    Raises:
        ValueError: If a callback or a scheduler follows something else.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if not quantities or not all(type(c).__module__.startswith(_KNOWN_PACKAGES) for c in callbacks):
        return  # callbacks of the user's own may log more
    known = {*quantities, *(name.replace("val/", "train/", 1) for name in quantities)}
    monitors = [getattr(callback, "monitor", None) for callback in callbacks]
    monitors += [c.monitor for c in trainer.lr_scheduler_configs if c.reduce_on_plateau]
    for monitor in monitors:
        if isinstance(monitor, str) and monitor not in known:
            raise ValueError(
                f"there is no '{monitor}' to monitor: choose one of {', '.join(quantities)}"
            )
