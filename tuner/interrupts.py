"""Ctrl-C and SIGTERM as a wish that the driver hears between two steps, so that no write is torn."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether the process was asked to stop; the second time it is stopped at once (KeyboardInterrupt).

    Only a program's main thread can listen to signals; in another one nothing changes.
    """
    heard = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield heard.is_set
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if heard.is_set():
            raise KeyboardInterrupt
        heard.set()

    before = {each: signal.signal(each, hear) for each in SIGNALS}
    try:
        yield heard.is_set
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
