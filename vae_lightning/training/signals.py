"""Signals that ask a training to stop: recorded when they arrive, obeyed at the end of a batch.

The handler only sets an attribute. Anything else, such as saving a checkpoint with the barrier that
several processes need, would run in the middle of other code, in one process and not in the others
(Lightning-AI/pytorch-lightning#21406).
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

STOP = (signal.SIGINT, signal.SIGTERM)
"""Signals on which a training saves and ends."""

REQUEUE = getattr(signal, "SIGUSR1", None)
"""Signal on which a training saves, requeues its job and ends: ``sbatch --signal=SIGUSR1@90``."""


class Listener:
    """Record the first signal that arrives.

    Attributes:
        received: The signal, None if none has arrived.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._handlers: dict[int, Any] = {}

    def listen(self, *signals: int | None) -> None:
        """Record these signals instead of calling their handlers."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers, and only it runs them
        for number in signals:
            if number is not None:
                handler = signal.signal(number, self._record)
                self._handlers.setdefault(number, handler)

    def stop(self) -> None:
        """Restore the handlers, and forget what was recorded."""
        for number, handler in self._handlers.items():
            if number == REQUEUE:  # too late to requeue, and its default would end the process
                signal.signal(number, signal.SIG_IGN)
            elif signal.getsignal(number) == self._record:  # not changed by others since
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}
        self.received = None

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.received is not None:  # the second time: do not wait for the batch
                raise KeyboardInterrupt
            # Not print, which is not reentrant.
            os.write(2, b"\nStopping after this batch; once more to stop at once.\n")
        if self.received is None or number == REQUEUE:  # it includes what the others do
            self.received = signal.Signals(number)


LISTENER = Listener()
"""The listener of this process."""
