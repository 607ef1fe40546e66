"""Signals that ask a training to stop: noted when they come, obeyed at the end of a batch.

A handler does nothing but set an attribute. Whatever else it did, such as saving a checkpoint with
the barrier that several processes need, would run in the middle of anything else, in one process
and not in the others (Lightning-AI/pytorch-lightning#21406).
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM)
"""Save and end."""

REQUEUE = getattr(signal, "SIGUSR1", None)
"""Save, put the job back into the queue, and end: ``sbatch --signal=SIGUSR1@90``."""


class Listener:
    """Notes the first signal that comes.

    Attributes:
        received: The signal, if one has come.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self, *signals: int | None) -> None:
        """Note these signals instead of what happened on them before."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may; others are not interrupted by signals
        for number in signals:
            if number is not None:
                handler = signal.signal(number, self._note)
                self._handlers.setdefault(number, handler)

    def stop(self) -> None:
        """Put back what happened on these signals before, and forget what has come."""
        for number, handler in self._handlers.items():
            if number == REQUEUE:  # too late for it, and what happened before is a sudden end
                signal.signal(number, signal.SIG_IGN)
            elif signal.getsignal(number) == self._note:  # nobody else has changed it since
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}
        self.received = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received is not None:  # somebody who will not wait
                raise KeyboardInterrupt
            # Not print, which must not be called inside of itself.
            os.write(2, b"\nStopping after this batch; once more to stop at once.\n")
        if self.received is None or number == REQUEUE:  # which does all that the others do
            self.received = signal.Signals(number)


LISTENER = Listener()
"""The one of this process."""
