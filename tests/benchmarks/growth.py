"""Latency against size: the same requests to two services at once, one with few slots, kits and trail entries, one with very many.

Both are real services with one worker each, on databases of their own in one PostgreSQL, asked in turns by one client. The list
and the kits are made by the service itself (kits beyond those of the sites lie in the depot); the trail is filled with entries
as the service writes them, by COPY: hashed, found by sealed columns, with every interior hash and a sealed head.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from app.cli.trial import sleep_until_next_step
from app.domain.encoding import canonical_json
from app.domain.merkle import leaf_hash
from app.domain.words import Action, Role, SiteCode, SubjectKey
from app.sealing.ring import KeyRing
from app.services import startup
from app.services.checkpoints import head_mac, lookup_mac
from app.storage import trail_writer
from app.storage.database import Transaction
from app.storage.trail import Lookup
from app.storage.trail_writer import LogHead
from app.surroundings import surroundings
from tests.benchmarks.throughput import Size, running
from tests.databases import PostgresServer
from tests.reliability.load import Connection
from tests.reliability.service import SITES, OpenStudy, Service, Sponsor

SMALL: Final = 1_000
KITS_PER_ARM: Final = 100
"""At each site, in one consignment, from which everybody asks."""
LARGEST: Final = 100_000
"""Kits of one consignment in the depot."""
_AT_ONCE: Final = 20_000


@dataclass
class Grown:
    """A service with a study of some size."""

    service: Service
    sponsor: Sponsor
    study: OpenStudy
    asked: int = 0

    @property
    def path(self) -> str:
        """Of the study."""
        return f"/v1/studies/{self.study.code}"

    def post(self, path: str, token: str, body: Mapping[str, Any]) -> float:
        """Return the seconds of one request on a kept-alive connection."""
        answer = self._connection.post(path, token, json.dumps(body).encode())
        if answer.status not in {200, 201}:
            raise RuntimeError(answer)
        return answer.seconds

    def __post_init__(self) -> None:
        self._connection = Connection(self.service.port)

    # -- what is measured

    def allocate(self) -> float:
        """One more subject."""
        self.asked += 1
        body = self.study.body(f"S-{self.asked}", self.asked)
        return self.post(f"{self.path}/allocations", self.study.token, body)

    def assign_kit(self) -> float:
        """A further kit of the newest subject."""
        token = self.study.trial._token(self.study.trial.who(Role.INVESTIGATOR), step_up=False)
        return self.post(f"{self.path}/subjects/S-{self.asked}/kits", token, {"visit": "V2"})

    def read_trail(self) -> float:
        """What the trail says of the newest subject."""
        trial = self.study.trial
        begun = time.perf_counter()
        trial.ask(trial.who(Role.INSPECTOR), "GET", f"{trial.study}/trail?subject=S-{self.asked}&limit=50")
        return time.perf_counter() - begun

    def break_code(self) -> float:
        """The code of the newest subject, by somebody with a fresh proof."""
        trial, person = self.study.trial, self.study.trial.who(Role.INVESTIGATOR)
        trial.prove(person)
        # While a code was waited for, the service has ended the connection; opening it anew is not counted.
        self._connection.close()
        body = {"subject_id": f"S-{self.asked}", "reason_code": "serious_adverse_event"}
        return self.post(f"{self.path}/code-breaks", person.stepped_up, body)


def measure_growth(server: PostgresServer, size: Size) -> dict[str, dict[str, float]]:
    """Return for each request the median latencies at both sizes in milliseconds, and their ratio."""
    with ExitStack() as stack:
        small, large = (_grown(stack, server, entries, size) for entries in (SMALL, size.slots))
        rounds = size.allocations // 4
        seconds: dict[str, list[tuple[float, float]]] = {}
        for number in range(rounds):
            for name in ("allocate", "assign_kit", "read_trail"):
                # Whoever comes second finds the processor warm: they take turns at that.
                pair = _pair(small, large, name, swapped=number % 2 == 1)
                seconds.setdefault(name.replace("_", " "), []).append(pair)
        # Each waits for a one-time code of its own, half a minute.
        for number in range(max(4, size.breaks // 3)):
            sleep_until_next_step(small.study.trial.now())
            seconds.setdefault("break code", []).append(_pair(small, large, "break_code", swapped=number % 2 == 1))
        return {
            name: {
                "small": SMALL,
                "large": size.slots,
                "small_ms": median(one for one, _ in found) * 1000,
                "large_ms": median(other for _, other in found) * 1000,
                "ratio": median(other for _, other in found) / median(one for one, _ in found),
            }
            for name, found in seconds.items()
        }


def _pair(small: Grown, large: Grown, name: str, *, swapped: bool) -> tuple[float, float]:
    order = (large, small) if swapped else (small, large)
    first, second = (getattr(grown, name)() for grown in order)
    return (second, first) if swapped else (first, second)


def _grown(stack: ExitStack, server: PostgresServer, size: int, of_run: Size) -> Grown:
    """Return a running service whose study has so many slots, kits and entries."""
    url = stack.enter_context(server.database())
    service, sponsor = stack.enter_context(running(url, 1))
    kits_per_arm = max(KITS_PER_ARM, of_run.allocations // len(SITES))
    study = sponsor.open_study("GROWN", SITES, max(size, of_run.allocations) // len(SITES), kits_per_arm)
    _fill_depot(study, max(0, size - 2 * kits_per_arm * len(SITES)))
    service.stop()
    _fill_trail(service, study, size)
    service.start()
    grown = Grown(service, sponsor, study)
    for _ in range(16):
        grown.allocate()
    # Until the other one is there, too, the service will have ended the connection.
    grown._connection.close()
    return grown


def _fill_depot(study: OpenStudy, kits: int) -> None:
    """Have so many kits made that are not sent anywhere."""
    trial = study.trial
    arms = [arm["arm_code"] for arm in trial.protocol.arms]
    expires_on = (trial.now().date() + timedelta(days=900)).isoformat()
    for number, begin in enumerate(range(0, kits, LARGEST)):
        each = max(1, min(LARGEST, kits - begin) // len(arms))
        lines = [{"arm_code": arm, "lot": f"L{arm}", "expires_on": expires_on, "count": each} for arm in arms]
        body = {"consignment_code": f"DEPOT-{number}", "kits": lines}
        trial.ask(trial.who(Role.SUPPLY_MANAGER), "POST", f"{trial.study}/consignments", body, step_up=True)


def _fill_trail(service: Service, study: OpenStudy, size: int) -> None:
    """Grow the log of a study to so many entries, as its own service would have; it must be down."""
    settings = service.settings()
    around = surroundings(settings)
    try:
        ring = startup.unseal(around, settings.mode).ring
        with around.database.transaction() as tx:
            found = text("SELECT study_id FROM study WHERE study_code = :code")
            head = trail_writer.lock_head(tx, UUID(str(tx.execute(found, {"code": study.code}).scalar_one())))
            assert head is not None
            _append_all(tx, ring, head, size)
        with around.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connected:
            # As autovacuum would have done by the time that a study has grown so large.
            connected.execute(text("VACUUM ANALYZE"))
    finally:
        around.database.close()


def _append_all(tx: Transaction, ring: KeyRing, head: LogHead, size: int) -> None:
    frontier = head.frontier
    place = (str(head.study_id), head.segment)
    entries: list[Sequence[object]] = []
    nodes: list[Sequence[object]] = []
    for index in range(frontier.size, size):
        subject, site = f"old-{index:07}", SITES[index % len(SITES)]
        lookup = Lookup(head.last_at, Action.ALLOCATE, "EDC system", SubjectKey(subject), SiteCode(site))
        body = canonical_json(_entry(head, index, lookup))
        leaf = leaf_hash(body)
        frontier, completed = frontier.append(leaf)
        seal = lookup_mac(ring, head.origin, index, leaf, lookup)
        of_row = (lookup.at, lookup.action, lookup.actor, lookup.subject_key, lookup.site_code)
        entries.append((*place, index, *of_row, body, leaf, seal))
        nodes += [(*place, node.level, node.index, node.hash) for node in completed]
        if len(entries) == _AT_ONCE:
            _copy(tx, entries, nodes)
    _copy(tx, entries, nodes)
    moved = (
        "UPDATE log SET size = :size, frontier = :frontier, mac = :mac WHERE study_id = :study AND segment = :segment"
    )
    mac = head_mac(ring, head.origin, frontier, head.last_at)
    values = {"size": frontier.size, "frontier": frontier.to_bytes(), "mac": mac}
    tx.execute(text(moved), values | {"study": head.study_id, "segment": head.segment})


def _entry(head: LogHead, index: int, lookup: Lookup) -> dict[str, object]:
    """Return what an entry of an allocation says."""
    return {
        "v": 1,
        "log": head.origin,
        "index": index,
        "at": lookup.at.isoformat(timespec="microseconds"),
        "actor": lookup.actor,
        "role": "edc_client",
        "organisation": None,
        "client": lookup.actor,
        "action": lookup.action,
        "outcome": "done",
        "target": {"subject_id": lookup.subject_key, "site_code": lookup.site_code},
        "before": None,
        "after": {"randomization_number": f"R{index:07}", "kit_code": f"K{index:07}", "strata": {}},
        "request_id": f"{index:032x}",
        "restricted": None,
    }


def _copy(tx: Transaction, entries: list[Sequence[object]], nodes: list[Sequence[object]]) -> None:
    columns = "study_id, segment, log_index, at, action, actor, subject_key, site_code, body, leaf_hash, lookup_mac"
    for into, rows in (
        (f"trail_entry ({columns})", entries),
        ("trail_node (study_id, segment, level, node_index, hash)", nodes),
    ):
        with tx.driver_connection.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        rows.clear()
