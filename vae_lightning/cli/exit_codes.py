"""Exit codes of the ``vae`` command."""

ERROR = 1
"""A command failed for a reason that its message names."""

WRONG_USAGE = 2
"""The command or its options are wrong."""

ALREADY_COMPLETE = 3
"""There is nothing left of the training that was to be continued."""

INTERRUPTED = 130
"""Ctrl-C, as shells report it."""
