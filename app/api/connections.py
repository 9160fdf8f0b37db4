"""What a worker bears of its clients: how long they may take, how much they may say beside a body, how many may be waited for.

uvicorn waits without end for a head or a body that comes byte by byte, keeps any head in memory however long it grows, and takes
any number of connections. Its own limit of them turns everybody away, a code break too; here room is made instead, by hanging up
on whoever has been waited for longest. So a newcomer who says what he wants is served, however many say nothing (rule D1).
"""

import asyncio
from asyncio import TimerHandle
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

from prometheus_client import Counter
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MOST_BESIDE_BODY: Final = 131_072
"""Bytes of one request that are not its body: request line, headers, trailers, what frames its chunks."""

HUNG_UP: Final = Counter("snose_hung_up_total", "Connections that the service ended, by reason.", ["reason"])


@dataclass(frozen=True, slots=True)
class Patience:
    """How much a worker bears."""

    seconds: float
    """How long a request may take to arrive, and a client to take a part of an answer."""
    most: int
    """Connections at a time."""
    waited_for: "dict[Connection, None]" = field(default_factory=dict)
    """Those whose client is to move, the one that was longest so first."""

    def connection(self) -> type[asyncio.Protocol]:
        """Return what uvicorn makes its connections by; a worker process gets a copy."""
        made: Any = partial(Connection, self)
        return cast("type[asyncio.Protocol]", made)


class Connection(HttpToolsProtocol):
    """One connection of a client, with an end to patience."""

    def __init__(
        self,
        patience: Patience,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Say what is borne; the rest is uvicorn's own."""
        super().__init__(config, server_state, app_state, _loop)
        self._patience = patience
        self._beside_body = 0
        self._body_in_hand = 0
        self._arriving: TimerHandle | None = None
        self._taking: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it so, and hands in no other
        """Make room for the new connection, and wait for its first request."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self._patience.most:
            # If all the others are being served, it is the newcomer who goes.
            next(iter(self._patience.waited_for)).hang_up("full")

    def data_received(self, data: bytes) -> None:
        """Read what came, and hang up on what grows without end and is no body."""
        self._body_in_hand = 0
        super().data_received(data)
        self._beside_body += len(data) - self._body_in_hand
        if self._beside_body > MOST_BESIDE_BODY:
            self.hang_up("large")

    def on_message_begin(self) -> None:
        """Wait for this request."""
        super().on_message_begin()
        self._beside_body = 0
        self._wait()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body; how large it may be is for its route to say (`app.api.doors`)."""
        self._body_in_hand += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait no more: from here on it is the service's turn."""
        super().on_message_complete()
        self._stop_waiting()

    def on_response_complete(self) -> None:
        """Let a client who has its answer, and may ask again or not, be among those who go first."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._patience.waited_for.setdefault(self)

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that was not used again; one whose client does not take the rest of an answer, too."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """Wait for a client who takes an answer slowly."""
        super().pause_writing()
        self._taking = self.loop.call_later(self._patience.seconds, self.hang_up, "slow")

    def resume_writing(self) -> None:
        """Go on: a part of the answer was taken."""
        super().resume_writing()
        self._stop_taking()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._stop_waiting()
        self._stop_taking()

    def _wait(self) -> None:
        self._stop_waiting()
        self._patience.waited_for[self] = None
        self._arriving = self.loop.call_later(self._patience.seconds, self.hang_up, "slow")

    def _stop_waiting(self) -> None:
        self._patience.waited_for.pop(self, None)
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def hang_up(self, reason: str) -> None:
        """End the connection at once, with whatever of an answer is still to be taken."""
        if not self.transport.is_closing():
            HUNG_UP.labels(reason).inc()
        self._patience.waited_for.pop(self, None)
        self.transport.abort()
