"""Errors that are the user's to mend: the command line prints their sentence, not a traceback."""


class UserError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and what to do instead."""
