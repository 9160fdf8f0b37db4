"""An HTTP client that calls the application in this process: requests as a server would hand them over, no socket in between.

Starlette's own test client starts a loop and hands over between threads seven times for each request; most of the suite's time
went there. Here one loop in one thread serves the whole life of a client, and a request is one hand-over.
"""

import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

# httpx looks for it at each request, on the disk and in vain; that it is not there need be found out once.
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]  # None is how Python remembers a module that is not there


class _InProcess(httpx2.BaseTransport):
    """Carries a request to the application's loop, and its whole answer back."""

    def __init__(self, app: FastAPI, *, raise_faults: bool, address: str) -> None:
        self.portal: BlockingPortal | None = None
        self._asgi = httpx2.ASGITransport(app, raise_app_exceptions=raise_faults, client=(address, 50000))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        assert self.portal is not None, "the client is used as a context manager"
        request.read()
        return self.portal.call(self._answer, request)

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._asgi.handle_async_request(request)
        content = httpx2.ByteStream(await response.aread())
        return httpx2.Response(response.status_code, headers=response.headers, stream=content)


class InProcessClient(httpx2.Client):
    """A client of one application: its start runs when the context is entered, its end when it is left."""

    def __init__(self, app: FastAPI, *, raise_faults: bool = True, address: str = "testclient") -> None:
        self._app = app
        self._in_process = _InProcess(app, raise_faults=raise_faults, address=address)
        self._life = ExitStack()
        super().__init__(transport=self._in_process, base_url="http://testserver")

    def forgiving(self) -> "InProcessClient":
        """Return a client of the same running application that answers a fault with what a server would: a 500."""
        other = InProcessClient(self._app, raise_faults=False)
        other._in_process.portal = self._in_process.portal
        return other

    def at(self, address: str) -> "InProcessClient":
        """Return a client of the same running application at another address."""
        other = InProcessClient(self._app, address=address)
        other._in_process.portal = self._in_process.portal
        return other

    def __enter__(self) -> Self:
        super().__enter__()
        portal = self._life.enter_context(start_blocking_portal())
        self._in_process.portal = portal
        self._life.enter_context(portal.wrap_async_context_manager(self._app.router.lifespan_context(self._app)))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._life.__exit__(exc_type, exc_value, traceback)
        super().__exit__(exc_type, exc_value, traceback)
