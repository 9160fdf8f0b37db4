"""What every process of the service does first: keep its memory off the disks, and say how it writes its log.

It loads nothing of the service, so that a command, or the parent of the workers, begins with it and need not wait.
"""

import ctypes
import logging
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4
"""Of ``linux/prctl.h``."""


def refuse_core_dumps() -> None:
    """Let no memory of this process reach a disk by a crash: it holds keys, and arms (`custody.md`, "Keys")."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # Where cores are piped to a program, the limit does not bind; a process that is not dumpable has none (core(5)). The
        # mark ends with exec, so a worker, which is a new program, sets it anew.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def configure_logs() -> None:
    """Write one JSON object a line to stdout; only declared fields, never a message with values in it (rule E1, BLD-13)."""
    import structlog  # noqa: PLC0415  # most commands, and the parent of the workers, write no log

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
