"""What a reader of the whole database knows of each kit and of each slot, as numbers: every column of every row, and where it lies.

A text is its length and, where it is a sealed value or a code, what it is made of; bytes are their length and their ends; an id is
its four parts; a time is its microseconds. On PostgreSQL each row brings ctid, xmin and xmax, on SQLite its rowid, and on both its
place in a full scan.
"""

import re
from base64 import urlsafe_b64decode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Table, literal_column, select

from app.storage import tables
from tests.security.leak_game.guessing import Sheet, normalised
from tests.security.leak_game.world import Asked, Drawn, Played
from tests.security.truth import open_kits, open_slots

Features = dict[str, float]
_NONCE: Final = 12
_SHORT: Final = 12
"""A text up to this length is told character by character."""
_SYSTEM: Final = {True: ("ctid", "xmin", "xmax"), False: ("rowid",)}
_PLACE: Final = re.compile(r"\((\d+),(\d+)\)")


@dataclass
class Known:
    """Everything that was found out about a study, and the truth, which the reader does not have."""

    study: str
    counts: Mapping[str, int]
    """How many requests of each kind had which status."""
    draws: Sequence[Drawn]
    stratum_of: Mapping[str, tuple[str, int]]
    """By subject."""
    asked: Sheet
    """Slots asked for at a site, by the period and by level and number, from the first refusal of the period on."""
    kits: Sheet
    slots: Sheet
    allocated: Sheet
    """Allocations by the code of their kit, with what could be seen of the request."""
    consignments: Sheet
    consignment_of: dict[str, str]
    status_of: dict[str, str]
    withdrawn: list[str]
    arm_of_kit: dict[str, int] = field(repr=False)
    arm_of_slot: dict[tuple[str, str, int], int] = field(repr=False)
    arm_of_place: dict[tuple[str, int], int] = field(repr=False)
    """By level and number within it."""


def read(played: Played) -> Known:
    """Return what is known of a study once all was played."""
    rows = {name: _rows(played, tables.metadata.tables[name]) for name in _TABLES}
    consignments = {row["consignment_id"]: row for row, _ in rows["consignment"]}
    given: dict[UUID, Features] = defaultdict(dict)
    for row, features in (*rows["kit_assignment"], *rows["envelope"]):
        given[row["kit_id"]] |= features
    entries: dict[str, Features] = {}
    restricted = {row["log_index"]: features for row, features in rows["trail_restricted"]}
    mentions: dict[str, list[int]] = defaultdict(list)
    for row, features in rows["trail_entry"]:
        text = row["body"].decode()
        for code in set(_CODE.findall(text)):
            mentions[code].append(len(row["body"]))
        if row["action"] == "allocation:create" and '"outcome":"done"' in text:
            entries[row["subject_key"]] = features | restricted.get(row["log_index"], {})
    answers = {row["claimed_at"]: features for row, features in rows["stored_answer"]}
    kits: dict[str, Features] = {}
    groups: dict[UUID, list[str]] = defaultdict(list)
    for row, features in rows["kit"]:
        code = row["kit_code"]
        kits[code] = features | given[row["kit_id"]]
        kits[code] |= {"trail mentions": len(mentions[code]), "trail bytes": sum(mentions[code])}
        groups[row["consignment_id"]].append(code)
    _count_looks(kits, groups.values(), played.draws)
    for codes in groups.values():
        _rank_within(kits, codes)
    truth = open_kits(played.house.deployment, played.study)
    arms = sorted({kit.arm_code for kit in truth.values()})
    codes_of = {row["kit_id"]: row["kit_code"] for row, _ in rows["kit"]}
    seen = {draw.kit_code: draw for draw in played.draws}
    slots = {_place(row): features for row, features in rows["slot"]}
    first = {row["subject_key"]: codes_of[row["kit_id"]] for row, _ in rows["kit_assignment"] if _is_first(row)}
    allocated: dict[str, Features] = {}
    for row, features in rows["allocation"]:
        code = first[row["subject_key"]]
        allocated[code] = _of_draw(seen[code]) | features | slots[_place(row)] | kits[code]
        allocated[code] |= entries[row["subject_key"]] | answers.get(row["allocated_at"], {})
    strata = {row["stratum_id"]: row["stratum_code"].partition("=")[2] for row, _ in rows["stratum"]}
    opened = open_slots(played.house.deployment, played.study)
    return Known(
        str(played.study),
        dict(played.counts),
        played.draws,
        played.stratum_of,
        Sheet.of(_asked(played.asked)),
        Sheet.of(kits),
        Sheet.of(slots),
        Sheet.of(allocated),
        Sheet.of({row["consignment_code"]: features for row, features in rows["consignment"]}),
        {row["kit_code"]: consignments[row["consignment_id"]]["consignment_code"] for row, _ in rows["kit"]},
        {row["kit_code"]: row["status"] for row, _ in rows["kit"]},
        [row["consignment_code"] for row in consignments.values() if row["status"] == "withdrawn"],
        {code: arms.index(kit.arm_code) for code, kit in truth.items()},
        {(str(s.schedule_id), str(s.stratum_id), s.position): arms.index(s.arm_code) for s in opened},
        {(strata[slot.stratum_id], slot.position): arms.index(slot.arm_code) for slot in opened},
    )


_TABLES: Final = (
    "consignment",
    "kit",
    "kit_assignment",
    "envelope",
    "trail_entry",
    "trail_restricted",
    "stored_answer",
    "slot",
    "allocation",
    "stratum",
)
_CODE: Final = re.compile(r"(?<![A-Za-z0-9])[2-9A-HJKMNP-Z]{9}(?![A-Za-z0-9])")


def _place(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return str(row["schedule_id"]), str(row["stratum_id"]), row["position"]


def _is_first(row: Mapping[str, Any]) -> bool:
    return row["visit"] is None and row["replaces"] is None


def _count_looks(kits: dict[str, Features], groups: Iterable[Sequence[str]], draws: Sequence[Drawn]) -> None:
    """Add, to each kit, how often the server's log named its place: where that look was enough, and where it was not."""
    consignments = [{int(kits[code]["kit map_index value"]): code for code in codes} for codes in groups]
    at_place = {code: places for places in consignments for code in places.values()}
    for draw in draws:
        named = "named, enough" if draw.seen.get("looks", 0) < 2 else "named, not enough"
        for place in draw.places:
            code = at_place[draw.kit_code].get(place)
            if code is not None:
                kits[code][named] = kits[code].get(named, 0.0) + 1


def _asked(asked: Sequence[Asked]) -> dict[tuple[str, str, int], Features]:
    """Return what is known of every slot asked for at a site between two parcels, while it drew from one consignment or none."""
    found: dict[tuple[str, str, int], Features] = {}
    begun: set[str] = set()
    for one in asked:
        period = f"{one.site}/{one.delivery}/{one.front}"
        if one.is_refused:
            begun.add(period)
        if period in begun:
            seen = {f"seen {name}": value for name, value in one.seen.items()}
            features = found.setdefault((period, *one.slot), seen | {"asked": 0.0, "refused": 0.0, "was refused": 0.0})
            features["asked"] += 1
            features["refused"] += one.is_refused
            features["was refused"] = max(features["was refused"], float(one.is_refused))
    return found


def _of_draw(draw: Drawn) -> Features:
    return {f"seen {name}": value for name, value in draw.seen.items()}


def _rows(played: Played, table: Table) -> list[tuple[dict[str, Any], Features]]:
    """Return every row of a table with its features, in the order of a full scan."""
    database = played.house.deployment.database
    system = _SYSTEM[database.is_postgresql]
    # The columns that PostgreSQL keeps for itself, as text: xid and tid have no type in the driver.
    columns: list[ColumnElement[str]] = [
        literal_column(f"CAST({name} AS TEXT)").label(f"system {name}") for name in system
    ]
    query = select(*columns, table).where(table.c.study_id == played.study_id)
    with database.transaction() as tx:
        found = [dict(row._mapping) for row in tx.execute(query).all()]
    return [(row, _features(table.name, scan, row)) for scan, row in enumerate(found)]


def _features(table: str, scan: int, row: Mapping[str, Any]) -> Features:
    features: Features = {f"{table} scan": float(scan)}
    for name, value in row.items():
        if name.startswith("system "):
            features |= {f"{table} {name}{at}": number for at, number in enumerate(_system(value))}
        elif name not in {"study_id", "action", "actor"}:
            features |= {f"{table} {name} {what}": number for what, number in _numbers(value)}
    return features


def _system(value: str) -> Sequence[float]:
    match = _PLACE.fullmatch(value)
    return [float(part) for part in (match.groups() if match else (value,))]


def _numbers(value: object) -> Iterator[tuple[str, float]]:  # noqa: C901  # one case for each type there is
    match value:
        case None:
            yield "none", 1.0
        case bool() | int() | float():
            yield "value", float(value)
        case datetime():
            yield "time", value.timestamp()
            yield "microsecond", float(value.microsecond)
        case date():
            yield "day", float(value.toordinal())
        case UUID():
            yield from _parts("part", value.bytes)
        case bytes():
            yield "length", float(len(value))
            yield from _parts("begin", value[:8])
            yield from _parts("end", value[-8:])
        case str() if value.startswith("v1."):
            yield "length", float(len(value))
            _, _, nonce, box = value.split(".")
            yield "box length", float(len(box))
            yield from _parts("nonce", urlsafe_b64decode(nonce)[:_NONCE])
            opened = urlsafe_b64decode(box + "=" * (-len(box) % 4))
            yield from _parts("box", opened[:8])
            yield from _parts("tag", opened[-16:])
        case str():
            yield "length", float(len(value))
            yield "order", float(int.from_bytes(value.encode()[:8].ljust(8, b"\0"), "big"))
            if len(value) <= _SHORT:
                for at, character in enumerate(value):
                    yield f"character {at}", float(ord(character))
        case _:
            message = f"a reader does not know what to make of {type(value).__name__}"
            raise TypeError(message)


def _parts(what: str, value: bytes) -> Iterator[tuple[str, float]]:
    for at in range(0, len(value), 4):
        yield f"{what} {at // 4}", float(int.from_bytes(value[at : at + 4], "big"))


def _rank_within(kits: dict[str, Features], codes: Sequence[str]) -> None:
    """Add, to each kit of a consignment, its rank in the consignment by everything that is known of all its kits."""
    names = set.intersection(*(set(kits[code]) for code in codes))
    for name in sorted(names):
        for code, rank in zip(codes, normalised([kits[code][name] for code in codes]), strict=True):
            kits[code][f"{name} within"] = rank
