"""What sending to the outside has in common: that it fails, in one word, and that it ends, however slowly somebody answers."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

_EVERY = 0.1


class NotDelivered(Exception):  # an instruction to the sender; nobody outside is ever told of it
    """A notice did not arrive, or nobody knows; its one word says why and holds nothing of what was sent or answered."""


@contextmanager
def hung_up_after(seconds: float, line: Callable[[], socket.socket | None]) -> Iterator[None]:
    """Hang up what ``line`` gives when the block is still under way after so many seconds: reading there then fails."""
    over = Event()

    def watch() -> None:
        waiting = seconds
        while not over.wait(waiting):
            waiting = _EVERY
            open_line = line()
            if open_line is not None:
                # The socket's own, beneath TLS, which would say good-bye first.
                with suppress(OSError):
                    socket.socket.shutdown(open_line, socket.SHUT_RDWR)

    watching = Thread(target=watch, name="deadline", daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
