"""Build the module that trains a model from the options of a command."""

import functools
from typing import Any

from jsonargparse import Namespace

from vae_lightning.models.loading import find_imported
from vae_lightning.training.module import LitVAE


def build_module(config: Namespace, **changes: Any) -> LitVAE:
    """Build the module that trains a model.

    Args:
        config: The options, with the model built.
        **changes: Arguments of `LitVAE` instead of those that the options give.
    """
    arguments: dict[str, Any] = {
        "optimizer": _factory(config.optimizer),
        "critic_optimizer": _factory(config.critic_optimizer),
        "lr_scheduler": _factory(config.lr_scheduler),
        **vars(config.training),
        **changes,
    }
    return LitVAE(config.model, **arguments)


def _factory(config: Namespace | None) -> Any:
    """Return what builds an optimizer or a scheduler, from its class and arguments."""
    if config is None:
        return None
    arguments = config.get("init_args") or Namespace()
    return functools.partial(find_imported(config.class_path), **vars(arguments))
