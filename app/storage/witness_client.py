"""The second sink: a witness over HTTP (C2SP tlog-witness). What it answers is verified by whoever asked.

Nobody who waits for an answer of the service waits for the witness: the keeper's own thread asks it, and gives up in time.
"""

import time
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import quote

import httpx

from app.storage.sink import SunkCheckpoint, parse_line

PATIENCE: Final = 5.0
"""Seconds for a connection, and for each part of an answer; an answer as a whole may take twice as long."""
_LARGEST: Final = 4 * 2**20


class WitnessSilent(Exception):  # named for the situation; nobody outside is ever told of it
    """The witness cannot be reached, or does not answer in time or in measure."""


class Answer(NamedTuple):
    """What the witness answered, nothing of it verified."""

    status: int
    text: str


class WitnessClient:
    """Speaks to one witness."""

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        """Name the witness; nothing is sent yet."""
        self._url = url.rstrip("/")
        self._patience = patience

    def add_checkpoint(self, body: str) -> Answer:
        """Return what the witness answers to a checkpoint; raise ``WitnessSilent``."""
        return self._ask("POST", "/add-checkpoint", body)

    def add_handover(self, note: str) -> Answer:
        """Return what the witness answers to a handover of the log's signing key; raise ``WitnessSilent``."""
        return self._ask("POST", "/add-handover", note)

    def checkpoints(self, name: str) -> list[SunkCheckpoint]:
        """Return the newest checkpoints that it says it has cosigned of the logs of a name; raise ``WitnessSilent``."""
        answer = self._ask("GET", f"/checkpoints?name={quote(name, safe='')}")
        if answer.status != httpx.codes.OK:
            raise WitnessSilent
        return [one for line in answer.text.split("\n") if (one := parse_line(line.encode())) is not None]

    def _client(self) -> httpx.Client:
        # Without TLS there is no authority to be read, which takes longer than the asking.
        return httpx.Client(timeout=self._patience, trust_env=False, verify=self._url.startswith("https:"))

    def _ask(self, method: str, path: str, body: str = "") -> Answer:
        headers: Mapping[str, str] = {"Content-Type": "text/plain; charset=utf-8"} if body else {}
        ends_at = time.monotonic() + 2 * self._patience
        content = bytearray()
        try:
            with (
                self._client() as client,
                client.stream(method, self._url + path, content=body.encode(), headers=headers) as response,
            ):
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _LARGEST or time.monotonic() > ends_at:
                        raise WitnessSilent
                return Answer(response.status_code, content.decode())
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeDecodeError):
            raise WitnessSilent from None
