"""A study of realistic traffic, played through the API by its people, and watched while it goes on.

Sites run short and are supplied again; consignments hold unequal numbers of the arms, several lots and dates; kits are missing from
parcels, damaged, lost, put aside and released; subjects come for visits and have kits replaced; a consignment is withdrawn at its
floor. Beside each request stands what a reader of the service's surroundings could measure at that moment: size and headers of the
answer, its time, how far the write-ahead log or the file moved, what the statistics views say, what the server wrote into its log.
"""

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final, TextIO
from uuid import UUID

import psycopg
from httpx2 import Response
from sqlalchemy import select

from app.domain.words import ConsignmentStatus, Role, StudyCode
from app.storage import tables
from tests.harness import STUDY_BODY, Caller, House, Json, drill, expect

ARMS: Final = tuple(str(arm["arm_code"]) for arm in STUDY_BODY["arms"])
_PLACES: Final = re.compile(r"'\{([0-9]+(?:,[0-9]+)+)\}'")
_LOOK: Final = "kit.map_index, kit.sealed"
"""What the server's log shows of a look at kits."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a study is."""

    sites: int
    strata: int
    slots: int
    kits: int
    allocations: int
    per_arm: tuple[int, int] = (16, 32)
    """Between which numbers of kits a consignment holds of each arm."""
    waits: int = 10
    """So many requests a site is short for until a parcel comes."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A request that gave a kit, and what could be seen of it."""

    kind: str
    subject: str
    site: str
    kit_code: str
    seen: Mapping[str, float]
    stock: Mapping[str, Sequence[str]]
    """What was in stock at the site, by consignment, as everybody who reads statuses knows."""
    places: Sequence[int]
    """The last list of whole numbers that the server's log showed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for the next slot of a stratum, whether it was refused for want of stock, and what could be seen of it."""

    site: str
    delivery: int
    """How many parcels the site had had by then."""
    front: str | None
    """The consignment that the site drew from, as everybody knows who reads statuses; None when all were withdrawn."""
    slot: tuple[str, int]
    """By level and number within it."""
    is_refused: bool
    seen: Mapping[str, float]


@dataclass
class Played:
    """What happened in a study."""

    house: House
    study: StudyCode
    study_id: UUID
    draws: list[Drawn] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    stratum_of: dict[str, tuple[str, int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


class Meter:
    """Measures what one request moves around the service."""

    def __init__(self, url: str, server_log: Path | None) -> None:
        self._log: TextIO | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._file = Path(url.removeprefix("sqlite:///"))
        if url.startswith("postgresql"):
            self._connection = psycopg.connect(url, autocommit=True)
            assert server_log is not None
            self._log = server_log.open(errors="replace")
            self._log.seek(0, 2)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._log is not None:
            self._log.close()

    def _surroundings(self) -> dict[str, float]:
        if self._connection is None:
            return {"file": self._file.stat().st_size}
        row = self._connection.execute(
            "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, pg_stat_get_tuples_fetched('kit'::regclass),"
            " pg_stat_get_tuples_returned('kit'::regclass), pg_stat_get_tuples_updated('kit'::regclass),"
            " pg_stat_get_blocks_hit('kit'::regclass), pg_relation_size('kit_assignment'),"
            " (SELECT sum(idx_tup_fetch + idx_scan) FROM pg_stat_user_tables)"
        ).fetchone()
        assert row is not None
        names = ("wal", "fetched", "returned", "updated", "hit", "size", "all")
        return {name: float(value or 0) for name, value in zip(names, row, strict=True)}

    def watch(self, caller: Caller, path: str, body: Json) -> tuple[Response, dict[str, float], Sequence[int]]:
        """Send a request; return the answer, what was measured, and the last list of numbers in the server's log."""
        before = self._surroundings()
        if self._log is not None:
            self._log.read()
        begun = time.perf_counter_ns()
        response = caller.post(path, json=body)
        seen = {"time": float(time.perf_counter_ns() - begun)}
        places: Sequence[int] = ()
        if self._log is not None:
            said = self._log.read()
            seen |= {"log bytes": len(said), "log lines": said.count("\n"), "statements": said.count("execute")}
            if lists := _PLACES.findall(said):
                places = [int(place) for place in lists[-1].split(",")]
            seen["places"] = len(places)
            seen["looks"] = said.count(_LOOK)
        seen |= {name: value - before[name] for name, value in self._surroundings().items()}
        seen |= {"status": response.status_code, "body": len(response.content), "headers": len(response.headers)}
        seen |= {f"header {name}": len(value) for name, value in response.headers.items()}
        return response, seen, places


class Traffic:
    """Plays one study; everything that it decides is drawn from its own seed."""

    def __init__(self, house: House, people: "People", meter: Meter, extent: Extent, seed: str) -> None:
        self._house, self._people, self._meter, self._extent = house, people, meter, extent
        self._chance = random.Random(seed)
        self.study = f"LEAK-{seed}"
        self._path = f"/v1/studies/{self.study}"
        self._sites = [f"{number:02}" for number in range(1, extent.sites + 1)]
        self._consignments = self._made = 0
        self._stock: dict[str, dict[str, list[str]]] = {site: {} for site in self._sites}
        self._waiting: Counter[str] = Counter()
        self._deliveries: Counter[str] = Counter()
        self._given: dict[str, list[str]] = {}
        self._site_of: dict[str, str] = {}
        self._aside: list[tuple[str, list[str]]] = []
        """Kits put aside, each with the stock that it comes back to."""
        self._next: Counter[str] = Counter()

    # -- before the first subject

    def begin(self) -> Played:
        """Register the study, make and activate its list, supply and activate its sites, and open it."""
        levels = [{"level_code": f"L{number}", "label": f"Level {number}"} for number in range(self._extent.strata)]
        factor = {"factor_code": "AGE", "label": "Age group", "levels": levels}
        self._house.register_study(self.study, tuple(self._sites), factors=[factor])
        admin = self._house.study_admins[self.study]
        self._people.join(self.study, self._sites)
        length = -(-self._extent.slots // self._extent.strata)
        body = {"block_sizes": [2, 4, 6], "length_per_stratum": length, "fill": "overrun"}
        made = expect(self._people.statistician.post(f"{self._path}/schedules", json=body, step_up=True), 201)
        schedule = f"{self._path}/schedules/{made['schedule_id']}"
        approval = {"commitment": made["commitment"], "meaning": "approval"}
        expect(self._people.list_approver.post(f"{schedule}/approval", json=approval, step_up=True), 200)
        expect(admin.post(f"{schedule}/activation", step_up=True), 200)
        for site in self._sites:
            for _ in range(2):
                self._deliver(site)
            drill(*self._people.investigators, study=self.study, site=site)
            expect(admin.post(f"{self._path}/sites/{site}/activation", step_up=True), 200)
        opened = {"status": "open", "reason": "All sites are ready."}
        expect(admin.post(f"{self._path}/status", json=opened, step_up=True), 200)
        with self._house.deployment.database.transaction() as tx:
            query = select(tables.study.c.study_id).where(tables.study.c.study_code == self.study)
            study_id = tx.execute(query).scalar_one()
        self._played = Played(self._house, StudyCode(self.study), study_id)
        return self._played

    def _create(self) -> str:
        """Make a consignment: unequal numbers, two lots of one arm, several dates; a few hold more than a sample."""
        self._consignments += 1
        code = f"C{self._consignments:04}"
        fewest, most = self._extent.per_arm
        counts = [self._chance.randint(fewest, most) * (3 if self._consignments % 9 == 0 else 1) for _ in ARMS]
        self._made += sum(counts)
        lines: list[Json] = []
        for arm, count in zip(ARMS, counts, strict=True):
            for lot, part in (("A", count // 3), ("B", count - count // 3)):
                day = date(2029, 1, 1) + timedelta(days=self._chance.randrange(900))
                lines.append({"arm_code": arm, "lot": f"{arm}-{lot}", "expires_on": day.isoformat(), "count": part})
        body = {"consignment_code": code, "kits": lines}
        expect(self._people.supply_manager.post(f"{self._path}/consignments", json=body, step_up=True), 201)
        return code

    def _deliver(self, site: str) -> None:
        """Make, send and receive a consignment; now and then a kit is missing from the parcel."""
        code = self._create()
        supply, pharmacist = self._people.supply_manager, self._people.pharmacist
        expect(supply.post(f"{self._path}/consignments/{code}/dispatch", json={"site_code": site}), 200)
        kit, consignment, study = tables.kit.c, tables.consignment.c, tables.study.c
        query = (
            select(kit.kit_code)
            .join_from(tables.kit, tables.consignment, kit.consignment_id == consignment.consignment_id)
            .join(tables.study, study.study_id == kit.study_id)
            .where(study.study_code == self.study, consignment.consignment_code == code)
            .order_by(kit.kit_code)
        )
        with self._house.deployment.database.transaction() as tx:
            codes = list(tx.execute(query).scalars())
        missing = [codes.pop(self._chance.randrange(len(codes)))] if self._chance.random() < 0.3 else []
        receipt = {"received": codes, "missing": missing}
        expect(pharmacist.post(f"{self._path}/consignments/{code}/receipt", json=receipt), 200)
        self._stock[site][code] = codes
        self._deliveries[site] += 1
        self._waiting[site] = 0

    # -- day by day

    def run(self, progress: str = "") -> Played:
        """Play until every planned subject is allocated, and register what is left of the kits."""
        played = self.begin()
        begun = time.monotonic()
        while len(self._given) < self._extent.allocations:
            self._house.clock.advance(seconds=self._chance.randint(20, 400))
            self._step()
            if progress and len(played.draws) % 1000 == 999:
                sys.stderr.write(f"{progress}: {len(played.draws)} kits given, {time.monotonic() - begun:.0f} s\n")
                sys.stderr.flush()
        while self._made < self._extent.kits:
            self._create()
        return played

    def _step(self) -> None:
        kind = self._chance.random()
        if kind < 0.82 or not self._given:
            self._allocate()
        elif kind < 0.90:
            subject = self._chance.choice([*self._given])
            self._draw(
                "visit", self._people.pharmacist, subject, f"subjects/{subject}/kits", {"visit": self._word("V")}
            )
        elif kind < 0.93:
            subject = self._chance.choice([*self._given])
            body = {"reason_code": self._chance.choice(["damaged", "lost", "other"]), "reason": "As seen at the site."}
            self._draw(
                "replacement", self._people.pharmacist, subject, f"kits/{self._given[subject][-1]}/replacement", body
            )
        elif kind < 0.97:
            self._dispense()
        else:
            self._put_aside()

    def _word(self, begin: str) -> str:
        return f"{begin}{self._chance.randrange(10**6)}"

    def _allocate(self) -> None:
        site = self._chance.choice(self._sites)
        level = f"L{self._chance.randrange(self._extent.strata)}"
        subject = f"{site}-{len(self._given):05}-{self._chance.randrange(10**4):04}"
        body = {
            "subject_id": subject,
            "site_code": site,
            "strata": {"AGE": level},
            "consent_confirmed": True,
            "eligibility_confirmed": True,
        }
        self._site_of[subject] = site
        slot = (level, self._next[level])
        delivery = self._deliveries[site]
        status, seen, front = self._draw("allocation", self._people.investigator, subject, "allocations", body)
        self._played.asked.append(Asked(site, delivery, front, slot, status != 201, seen))
        if status == 201:
            self._next[level] += 1
            self._played.stratum_of[subject] = slot

    def _draw(
        self, kind: str, caller: Caller, subject: str, path: str, body: Json
    ) -> tuple[int, Mapping[str, float], str | None]:
        """Ask for a kit, and supply the site some requests after it ran short.

        Returns the status, what was seen, and which consignment the site drew from.
        """
        site = self._site_of[subject]
        stock = {code: tuple(codes) for code, codes in self._stock[site].items()}
        response, seen, places = self._meter.watch(caller, f"{self._path}/{path}", body)
        self._played.counts[f"{kind} {response.status_code}"] += 1
        if response.status_code == 201:
            code = str(response.json()["kit_code"])
            of, codes = next((of, codes) for of, codes in self._stock[site].items() if code in codes)
            codes.remove(code)
            self._given.setdefault(subject, []).append(code)
            self._played.draws.append(Drawn(kind, subject, site, code, seen, stock, places))
            return response.status_code, seen, of
        front = self._front(site)
        if response.json().get("code") == "stock_insufficient":
            self._waiting[site] += 1
            if self._waiting[site] >= self._extent.waits:
                for _ in range(2):
                    self._deliver(site)
        return response.status_code, seen, front

    def _front(self, site: str) -> str | None:
        """Return the consignment that a site's next kit would come from, or None when there is none."""
        consignment = tables.consignment.c
        query = (
            select(consignment.consignment_code)
            .where(
                consignment.study_id == self._played.study_id,
                consignment.site_code == site,
                consignment.status == ConsignmentStatus.ASSIGNABLE.value,
            )
            .order_by(consignment.unusable_from, consignment.consignment_id)
        )
        with self._house.deployment.database.transaction() as tx:
            found = tx.execute(query.limit(1)).scalar_one_or_none()
        return None if found is None else str(found)

    def _dispense(self) -> None:
        subject = self._chance.choice([*self._given])
        code = self._given[subject][-1]
        body = {"subject_id": subject, "scanned_code": code}
        self._count("dispensation", self._people.pharmacist.post(f"{self._path}/kits/{code}/dispensation", json=body))

    def _put_aside(self) -> None:
        """A kit in stock is damaged, lost or put aside; now and then one that was put aside comes back."""
        body = {"reason": "As seen at the site."}
        if self._aside and self._chance.random() < 0.2:
            code, codes = self._aside.pop()
            supply = self._people.supply_manager
            self._count("release", supply.post(f"{self._path}/kits/{code}/release", json=body, step_up=True))
            codes.append(code)
            return
        held = [codes for codes in self._stock[self._chance.choice(self._sites)].values() if codes]
        if held:
            codes = self._chance.choice(held)
            code = codes.pop(self._chance.randrange(len(codes)))
            what = self._chance.choice(["quarantine", "damage", "loss"])
            if what == "quarantine":
                self._aside.append((code, codes))
            self._count(what, self._people.pharmacist.post(f"{self._path}/kits/{code}/{what}", json=body))

    def _count(self, what: str, response: Response) -> None:
        self._played.counts[f"{what} {response.status_code}"] += 1


class People:
    """Who works in a house: one person for a role, and a second investigator."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.statistician, self.list_approver, self.supply_manager = (house.person(None) for _ in range(3))
        self.pharmacist, self.investigator, self._second = (house.person(None) for _ in range(3))

    @property
    def investigators(self) -> tuple[Caller, Caller]:
        return self.investigator, self._second

    def join(self, study: str, sites: Sequence[str]) -> None:
        """Give everybody the roles in one more study."""
        for caller, role in (
            (self.statistician, Role.STATISTICIAN),
            (self.list_approver, Role.LIST_APPROVER),
            (self.supply_manager, Role.SUPPLY_MANAGER),
        ):
            self._house.grant(caller, role, study)
        for site in sites:
            self._house.grant(self.pharmacist, Role.PHARMACIST, study, site)
            self._house.grant(self.investigator, Role.INVESTIGATOR, study, site)
            self._house.grant(self._second, Role.INVESTIGATOR, study, site)


def play(house: House, url: str, server_log: Path | None, extent: Extent, seed: str, progress: str = "") -> Played:
    """Return a study that was played in a house; ``progress`` names it on stderr while it goes on."""
    meter = Meter(url, server_log)
    try:
        return Traffic(house, People(house), meter, extent, seed).run(progress)
    finally:
        meter.close()
