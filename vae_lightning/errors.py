"""Errors that are the user's to mend: the command line prints their sentence, not a traceback."""


class UserError(ValueError):
    """Bad input. The message is one sentence: what is wrong, where, and what to do instead."""

    def __init__(self, message: str) -> None:
        # torch hands on an error of a worker process with the whole traceback as the message.
        super().__init__(message.rpartition(f"{__name__}.UserError: ")[2].strip())
