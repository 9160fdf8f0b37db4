"""Builds of the service with one defence taken away: each must be caught by the game."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

from sqlalchemy import select

from app.domain.encoding import encode
from app.domain.kits import PlannedKit
from app.domain.sealed import LENGTH_PREFIX, Column, Place
from app.domain.words import ArmCode, SiteCode, StudyCode
from app.errors import StockInsufficient
from app.sealing import ring
from app.sealing.envelope import open_box, read_token, unpad
from app.services import consignments, stock
from app.services.audited import Act
from app.services.evidence import OpenedKit, open_kit
from app.storage import kits, tables
from app.storage.kits import Assignable, NewKit, SealedKit
from tests.security.twins import arm_dependent_refusal, first_match

Leak = Callable[[], AbstractContextManager[None]]


@contextmanager
def unpadded() -> Iterator[None]:
    """What is sealed is as long as it is: an arm, a lot or a treatment has its length."""

    def pad(plaintext: bytes, _length: int) -> bytes:
        return len(plaintext).to_bytes(LENGTH_PREFIX, "big") + plaintext

    def opener_for(self: ring.KeyRing, column: Column, study_code: StudyCode | None) -> Callable[[Place, str], bytes]:
        def open_(place: Place, token: str) -> bytes:
            key_id, nonce, box = read_token(token)
            key = self._field_key(column, study_code, key_id)
            associated = self._prefix(column, study_code) + encode(*place) + key.encoded_version
            return unpad(open_box(key.cipher, nonce, box, associated))

        return open_

    with patch.object(ring, "pad", pad), patch.object(ring.KeyRing, "opener_for", opener_for):
        yield


@contextmanager
def unshuffled() -> Iterator[None]:
    """Kits are stored in the order of the manifest, arm by arm."""
    sealed, arms = consignments._sealed, dict[str, str]()

    def remembered(act: Act, consignment_id: Any, code: Any, ordered: Sequence[PlannedKit]) -> Any:  # noqa: ANN401  # as it is
        arms.update({kit.kit_code: kit.arm_code for kit in ordered})
        return sealed(act, consignment_id, code, ordered)

    def by_arm(_act: Act, rows: Sequence[NewKit]) -> list[NewKit]:
        return sorted(rows, key=lambda row: arms[row.kit_code])

    with patch.object(consignments, "_sealed", remembered), patch.object(consignments, "_shuffled", by_arm):
        yield


@contextmanager
def serial_ids() -> Iterator[None]:
    """Kits are numbered as the manifest names them, arm by arm, and not in the order of their codes."""

    def as_planned(items: Any, **how: Any) -> list[Any]:  # noqa: ANN401  # what `sorted` takes
        listed = list(items)
        return listed if listed and isinstance(listed[0], PlannedKit) else sorted(listed, **how)

    with patch.object(consignments, "sorted", as_planned, create=True):
        yield


@contextmanager
def order_in_the_log() -> Iterator[None]:
    """Candidates are opened in the order of a statement's parameter, which the server's log shows."""

    def in_logged_order(act: Act, consignment: Assignable, _sample: int) -> Iterator[SealedKit]:
        places = stock._random_places(act, consignment.kit_count, 8 * consignment.kit_count)
        yield from kits.list_at_places(act.tx, act.study.study_id, consignment, places)

    with patch.object(stock, "_in_random_order", in_logged_order):
        yield


@contextmanager
def locked_candidates() -> Iterator[None]:
    """The candidates of the allocated arm are locked, and PostgreSQL keeps who locked a row in the row."""
    honest = stock.StockDraw.offer

    class Locking(dict[ArmCode, OpenedKit]):
        def __init__(self, offered: dict[ArmCode, OpenedKit], act: Act) -> None:
            super().__init__(offered)
            self._act = act

        def __getitem__(self, arm: ArmCode) -> OpenedKit:
            act, chosen = self._act, super().__getitem__(arm)
            kit, study_id = tables.kit.c, act.study.study_id
            of = tables.consignment.c
            query = (
                select(of.consignment_id, of.consignment_code, of.kit_count)
                .join(tables.kit, (kit.study_id == of.study_id) & (kit.consignment_id == of.consignment_id))
                .where(kit.study_id == study_id, kit.kit_id == chosen.kit_id)
            )
            row = act.tx.execute(query).one()
            consignment = Assignable(row.consignment_id, row.consignment_code, row.kit_count)
            candidates = [
                one.kit_id
                for one in kits.list_in_stock(act.tx, study_id, consignment)
                if open_kit(act, one).arm_code == arm
            ]
            act.tx.execute(
                select(kit.kit_id).where(kit.study_id == study_id, kit.kit_id.in_(candidates)).with_for_update()
            ).all()
            return chosen

    def offer(self: stock.StockDraw, act: Act, site: SiteCode, zone: str, arms: Collection[ArmCode]) -> Locking:
        return Locking(honest(self, act, site, zone, arms), act)

    with patch.object(stock.StockDraw, "offer", offer):
        yield


@contextmanager
def mixed_consignments() -> Iterator[None]:
    """The floor is met by a sum, and each arm's kit comes out of the first consignment that still has one."""

    def offer(
        _self: stock.StockDraw, act: Act, site: SiteCode, zone: str, arms: Collection[ArmCode]
    ) -> dict[ArmCode, OpenedKit]:
        study_id = act.study.study_id
        kits.lock_stock(act.tx, study_id, site)
        first: dict[ArmCode, OpenedKit] = {}
        seen: Counter[ArmCode] = Counter()
        today = stock.site_day(act.now, zone)
        for consignment in kits.list_assignable_consignments(act.tx, study_id, site, today):
            for kit in stock._in_random_order(act, consignment, consignment.kit_count):
                opened = open_kit(act, kit)
                seen[opened.arm_code] += 1
                first.setdefault(opened.arm_code, opened)
        if any(seen[arm] < act.study.stock_floor for arm in arms):
            raise StockInsufficient
        return first

    with patch.object(stock.StockDraw, "offer", offer):
        yield


@contextmanager
def floor_of_one() -> Iterator[None]:
    """One kit of every arm is enough, so that the last one of an arm is given."""
    honest = stock._first_of_every_arm

    def at_floor_of_one(
        act: Act, consignment: Assignable, arms: Collection[ArmCode]
    ) -> dict[ArmCode, OpenedKit] | None:
        head, act.head = act.head, replace(act.study, stock_floor=1)
        found = honest(act, consignment, arms)
        act.head = head
        return found

    with patch.object(stock, "_first_of_every_arm", at_floor_of_one):
        yield


LEAKS: Final[dict[str, Leak]] = {
    "padding removed": unpadded,
    "rows not shuffled": unshuffled,
    "serial ids": serial_ids,
    "first match": first_match,
    "order in the log": order_in_the_log,
    "candidates locked": locked_candidates,
    "mixed consignments": mixed_consignments,
    "refusal of one arm": arm_dependent_refusal,
    "floor of one": floor_of_one,
}
