"""The kit for a subject: stock decided without looking at the arm, then one kit drawn uniformly (rules B5, B6).

The consignment is the soonest-expiring one at the site that still holds the floor of every arm. One that no longer does is
withdrawn as a whole and never mixed in later. Candidates are opened in a fresh random order until the floor of every arm has been
seen; the kit is the first of the wanted arm in that order. So the work depends neither on the arm nor on the size of the stock.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from math import ceil
from struct import unpack
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from app.domain.words import ArmCode, SiteCode
from app.errors import SnoseError, StockInsufficient
from app.services.audited import Act
from app.services.evidence import OpenedKit, open_kit
from app.storage import kits
from app.storage.database import Transaction
from app.storage.kits import Assignable, SealedKit

_SAMPLE_PER_ARM: Final = 4
"""How many times the floor of each arm the first sample holds, so that it nearly always suffices."""
_DRAWS_PER_KIT: Final = 3
"""How many places of a kit map are drawn for each kit of the sample, where all its kits are in stock; more where some are used.

So many that an even draw seldom opens half of what it finds: of two arms of one size, once in 10**7 draws.
"""
_NEARLY_ALL: Final = 2
"""A sample of which more than one in so many kits had to be opened was nearly too small."""
_GROWTH: Final = 2
"""How many times larger a sample becomes that was nearly too small."""
_LAST_LOOKS: Final = 8
"""Of about so many looks the share in stock is the mean: of a single one it would jump, and with it what the next one finds."""
_KEY_LENGTH: Final = 8
"""Bytes by which a kit is put in its place; that two are alike has a chance of 2**-64 for each pair."""


def site_day(now: datetime, timezone: str) -> date:
    """Return the day at the site: expiry begins at its midnight (rule B11)."""
    return now.astimezone(ZoneInfo(timezone)).date()


@dataclass(slots=True)
class StockDraw:
    """A look into a site's stock; what it found must be withdrawn is kept even when the act is refused."""

    study_id: UUID | None = None
    site_code: SiteCode | None = None
    withdrawn: list[UUID] = field(default_factory=list)
    at: datetime | None = None

    def offer(
        self, act: Act, site_code: SiteCode, timezone: str, arms: Collection[ArmCode]
    ) -> dict[ArmCode, OpenedKit]:
        """Return one kit for every arm, all of one consignment, as the draw would give it to that arm.

        The caller picks the one of the allocated arm, and the others are forgotten: whatever the arm is, the same work was
        done. Locks the site's stock. Raises ``StockInsufficient``, in one way for every cause.
        """
        kits.lock_stock(act.tx, act.study.study_id, site_code)
        self.study_id, self.site_code, self.at = act.study.study_id, site_code, act.now
        self.withdrawn.clear()
        today = site_day(act.now, timezone)
        for consignment in kits.list_assignable_consignments(act.tx, act.study.study_id, site_code, today):
            offered = _first_of_every_arm(act, consignment, arms)
            if offered is not None:
                return offered
            self.withdrawn.append(consignment.consignment_id)
            codes = [*(act.lasting or {}).get("withdrawn_consignments", ()), consignment.consignment_code]
            act.lasting = {"withdrawn_consignments": codes, "alert": "supply_manager"}
            kits.record_withdrawal(act.tx, act.study.study_id, consignment.consignment_id, act.now)
        raise StockInsufficient

    def on_refusal(self, tx: Transaction, _error: SnoseError) -> None:
        """Withdraw, in the transaction of the refusal's entry, what no longer held the floor: it is never mixed in later.

        Like every change of a site's stock under its lock, which comes before that of the log (`custody.md`, lock order).
        """
        if self.study_id is not None and self.site_code is not None and self.at is not None and self.withdrawn:
            kits.lock_stock(tx, self.study_id, self.site_code)
            for consignment_id in self.withdrawn:
                kits.record_withdrawal(tx, self.study_id, consignment_id, self.at)


def _first_of_every_arm(
    act: Act, consignment: Assignable, arms: Collection[ArmCode]
) -> dict[ArmCode, OpenedKit] | None:
    """Return the first kit of every arm in a fresh random order, or None below the floor of any arm.

    Where the sample does not show every floor, everything is looked at anew: a kit of the sample comes no sooner than another one.
    Whoever reads the server's log sees that, and which places were looked at, and so that few of them are of some arm. So it must
    not happen again and again: a sample that was nearly too small is larger from the next request on, for as long as the process
    lives, and one that was too small is everything. What is left to see is when that came: how kits deplete, not which they are.
    """
    floor, samples = act.study.stock_floor, act.deployment.samples
    least = floor * len(arms) * _SAMPLE_PER_ARM
    for wanted in (max(least, samples.get(consignment.consignment_id, 0)), consignment.kit_count):
        found = list(_in_random_order(act, consignment, wanted))
        seen: Counter[ArmCode] = Counter()
        first: dict[ArmCode, OpenedKit] = {}
        for count, kit in enumerate(found, 1):
            opened = open_kit(act, kit)
            seen[opened.arm_code] += 1
            first.setdefault(opened.arm_code, opened)
            if all(seen[arm] >= floor for arm in arms):
                if count > len(found) // _NEARLY_ALL:
                    samples[consignment.consignment_id] = min(wanted * _GROWTH, consignment.kit_count)
                return first
        samples[consignment.consignment_id] = consignment.kit_count
    return None


def _in_random_order(act: Act, consignment: Assignable, sample: int) -> Iterator[SealedKit]:
    """Give kits in stock of a consignment in a fresh random order, at least ``sample`` of them unless fewer are left.

    The order is made here and never in a statement: whoever reads the server's log would see it, and with it which kits were
    passed over, which are of other arms (rule B5). What is read does not depend on what is found in it. Of a large consignment
    that is what is still in stock at random places of its kit map: the database then looks at those places only. How many of them
    suffices follows from the share that was in stock at the last looks, which every site may know. (2,000 kits in stock cost a
    quarter of the rate without it.)
    """
    study_id, consignment_id, shares = act.study.study_id, consignment.consignment_id, act.deployment.stock_shares
    found: list[SealedKit] = []
    draws = ceil(sample * _DRAWS_PER_KIT / shares.get(consignment_id, 1))
    if draws < consignment.kit_count:
        places = _random_places(act, consignment.kit_count, draws)
        found = kits.list_at_places(act.tx, study_id, consignment, places)
        seen = max(1, len(found)) / len(places)
        known = shares.get(consignment_id, seen)
        shares[consignment_id] = known + (seen - known) / _LAST_LOOKS
    if len(found) < sample:
        found = kits.list_in_stock(act.tx, study_id, consignment)
        shares[consignment_id] = max(1, len(found)) / consignment.kit_count
    keys = act.deployment.entropy.draw("kit order", _KEY_LENGTH * len(found))
    order = sorted(range(len(found)), key=lambda at: keys[_KEY_LENGTH * at : _KEY_LENGTH * (at + 1)])
    return (found[at] for at in order)


def _random_places(act: Act, kit_count: int, draws: int) -> list[int]:
    """Return different places of a kit map, each as likely as any other, in random order."""
    # 64 bits for each place: one is preferred to another by less than one in 10**13.
    chance = unpack(f">{draws}Q", act.deployment.entropy.draw("kit places", 8 * draws))
    return list(dict.fromkeys(number % kit_count for number in chance))


def holds_floor(act: Act, site_code: SiteCode, timezone: str, arms: Collection[ArmCode]) -> bool:
    """Return whether a subject at the site could be given a kit now; nothing is withdrawn or locked by looking (rule B6)."""
    today = site_day(act.now, timezone)
    usable = kits.list_assignable_consignments(act.tx, act.study.study_id, site_code, today)
    return any(_first_of_every_arm(act, consignment, arms) is not None for consignment in usable)
