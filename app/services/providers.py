"""The keys of outside issuers: those that were registered, or those that the issuer itself tells at an address.

An issuer is asked by a thread of its own, outside of any transaction, at most once a minute: nobody waits for it who has keys of it
that are not too old, and nobody at all who signs in with a password of this service, or breaks a code in such a session (rule D5).
Whoever must wait does so for a bounded time, and so few at once that most threads of the service are always free.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore, Event, Lock, Thread
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

import structlog

from app.domain.sealed import Column, SealContext
from app.errors import ProviderUnavailable
from app.identity import discovery
from app.identity.access_tokens import Demands
from app.identity.discovery import Description, NamedKey
from app.identity.jose import PublicKey
from app.storage.delivery import NotDelivered
from app.storage.issuers import Issuer
from app.storage.outside_client import Said
from app.storage.provider_client import ProviderClient

MAX_AGE: Final = timedelta(hours=24)
"""For so long the last good keys stand when an issuer does not answer."""
REFRESH: Final = timedelta(hours=1)
"""Keys older than this are asked for anew, beside their use."""
PAUSE: Final = timedelta(minutes=1)
"""So often at most is an issuer asked, however many tokens name a key that it does not have."""
PATIENCE: Final = 5.0
"""Seconds that a request waits for an issuer at most."""
_OK: Final = 200
_FORM: Final = "application/x-www-form-urlencoded"
_log: Final = structlog.get_logger("snose.providers")


@dataclass(frozen=True, slots=True)
class Provider:
    """What an issuer has told of itself."""

    keys: Sequence[NamedKey]
    description: Description

    def knows(self, key_id: object) -> bool:
        """Return whether a token may mean one of the keys by this name."""
        return any(one.key_id == key_id for one in self.keys)


def demands_of(issuer: Issuer) -> Demands:
    """Return what two administrators ask of an issuer's word."""
    groups = json.loads(issuer.required_groups or "[]")
    return Demands(json.loads(issuer.proof_acr_values), issuer.groups_claim or "groups", groups)


def secret_context(issuer_id: UUID) -> SealContext:
    """Return where the secret lies by which the service is known to an issuer."""
    return SealContext(Column.ISSUER, None, (str(issuer_id),))


@dataclass(slots=True)
class _Kept:
    """What is known of an issuer, and whether it is being asked."""

    issuer_id: UUID
    provider: Provider | None = None
    read_at: datetime | None = None
    asked_at: datetime | None = None
    trouble: str = ""
    answered: Event = field(default_factory=Event)

    def usable(self, now: datetime, age: timedelta = MAX_AGE) -> Provider | None:
        """Return what was read, unless that was too long ago."""
        is_good = self.read_at is not None and abs(now - self.read_at) < age
        return self.provider if is_good else None

    def may_be_asked(self, now: datetime) -> bool:
        """Return whether the last question is long enough ago, whatever came of it."""
        return self.asked_at is None or abs(now - self.asked_at) >= PAUSE


class Providers:
    """The issuers that are asked over a network, as far as this process knows them."""

    def __init__(self, client: ProviderClient, places: int) -> None:
        """Say how many requests may wait for issuers at a time; nobody is asked yet."""
        self.client = client
        self._places = BoundedSemaphore(places)
        self._lock = Lock()
        self._kept: dict[str, _Kept] = {}

    def keys(self, issuer: Issuer, key_id: object, now: datetime) -> Sequence[PublicKey]:
        """Return the keys with one of which an issuer may have signed what names this key; raise ``ProviderUnavailable``.

        Danger: it may take seconds, so never within a transaction.
        """
        if issuer.jwks_uri is None and not issuer.is_discovered:
            return [PublicKey(**key) for key in json.loads(issuer.jwks)]
        return [one.key for one in self._find(issuer, now, lambda provider: provider.knows(key_id)).keys]

    def description(self, issuer: Issuer, now: datetime) -> Description:
        """Return how one signs in at an issuer that describes itself; raise ``ProviderUnavailable``. Danger: as ``keys``."""
        return self._find(issuer, now, lambda _provider: True).description

    def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Said:
        """Return what is answered to a form; raise ``ProviderUnavailable``, at once where too many are waited for.

        Danger: it may take seconds, so never within a transaction.
        """
        if not self._places.acquire(blocking=False):
            raise ProviderUnavailable("busy")
        answers: SimpleQueue[Said | NotDelivered] = SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self.client.ask("POST", url, {"Content-Type": _FORM, **headers}, urlencode(form).encode()))
            except NotDelivered as error:
                answers.put(error)
            finally:
                # Not before: a name that nobody resolves holds a thread for longer than anybody waits.
                self._places.release()

        Thread(target=ask, name="provider", daemon=True).start()
        try:
            said = answers.get(timeout=PATIENCE)
        except Empty:
            raise ProviderUnavailable("timeout") from None
        if isinstance(said, NotDelivered):
            raise ProviderUnavailable(str(said))
        return said

    def _find(self, issuer: Issuer, now: datetime, suffices: Callable[[Provider], bool]) -> Provider:
        with self._lock:
            kept = self._kept.get(issuer.issuer)
            if kept is None or kept.issuer_id != issuer.issuer_id:
                # What is registered anew is read anew; one name is one entry, so there are never more than issuers.
                kept = self._kept[issuer.issuer] = _Kept(issuer.issuer_id)
            usable = kept.usable(now)
            is_enough = usable is not None and suffices(usable)
            if kept.may_be_asked(now) and not (is_enough and kept.usable(now, REFRESH)):
                kept.asked_at = now
                kept.answered.clear()
                Thread(target=self._ask, args=(issuer, kept, now), name="provider", daemon=True).start()
        if usable is not None and is_enough:
            return usable
        self._wait_for(kept)
        usable = kept.usable(now)
        if usable is None:
            raise ProviderUnavailable(kept.trouble or "busy")
        return usable

    def _wait_for(self, kept: _Kept) -> None:
        """Wait for the answer, if it is not there; not at all when as many wait as may."""
        if not self._places.acquire(blocking=False):
            return
        try:
            kept.answered.wait(PATIENCE)
        finally:
            self._places.release()

    def _ask(self, issuer: Issuer, kept: _Kept, now: datetime) -> None:
        """Read an issuer anew; what it does wrong leaves what was read before."""
        try:
            provider = self._read(issuer)
            kept.provider, kept.read_at, kept.trouble = provider, now, ""
        except (NotDelivered, ProviderUnavailable) as error:
            kept.trouble = error.why if isinstance(error, ProviderUnavailable) else str(error)
            _log.warning("issuer not read", issuer=issuer.issuer, why=kept.trouble)
        finally:
            kept.answered.set()

    def _read(self, issuer: Issuer) -> Provider:
        if issuer.jwks_uri is not None:
            # Its keys are all that is told of it.
            told = Description(issuer.jwks_uri)
        else:
            told = discovery.description(self._get(discovery.address_of(issuer.issuer)), issuer.issuer)
        return Provider(discovery.keys(self._get(told.jwks_uri), told.rsa_algorithm), told)

    def _get(self, url: str) -> bytes:
        said = self.client.ask("GET", url, {})
        if said.status != _OK:
            message = f"http_{said.status}"
            raise ProviderUnavailable(message)
        return said.content
