"""Which kit a subject gets: rules B5 and B6, at the service's own edge and on both databases."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from statistics import NormalDist

import pytest
from sqlalchemy import select

from app.domain.words import ArmCode, SiteCode
from app.errors import StockInsufficient
from app.services import stock
from app.services.audited import Act
from app.services.stock import StockDraw, holds_floor
from app.storage import kits, tables
from app.storage.database import TryAgain
from app.storage.kits import Assignable, SealedKit
from tests import supply
from tests.harness import Caller, House, drill, expect
from tests.supply import ARMS, S, Trial

ZONE = "Asia/Shanghai"
SITE = SiteCode("01")
ARM_CODES = [ArmCode(arm) for arm in ARMS]


def quarantine(trial: Trial, kit_code: str) -> None:
    """Put a kit aside."""
    answer = trial.pharmacist.post(f"{S}/kits/{kit_code}/quarantine", json={"reason": "Fridge at 14 degrees."})
    expect(answer, 200)


def some_of(trial: Trial, code: str, arm: str) -> list[str]:
    """Return the kits of an arm that are in stock in a consignment."""
    arms, statuses = trial.arms_of(code), trial.statuses(code)
    return [kit for kit in arms if arms[kit] == arm and statuses[kit] == "in_stock"]


def bare(answer: object) -> object:
    """Return a problem without the one thing that is the service's own chance."""
    assert isinstance(answer, dict)
    return {name: value for name, value in answer.items() if name != "request_id"}


class TestFloor:
    def test_is_met_by_one_consignment_and_never_by_a_sum(self, house: House) -> None:
        """Two consignments that hold four of an arm together, two each, hold no floor of three [B5, B6]"""
        trial = supply.trial(house, per_arm=3)
        trial.stock("C2", per_arm=3)
        trial.allocate("01-0001")
        trial.allocate("01-0002")
        assert sum((trial.left_of("C1") + trial.left_of("C2")).values()) == 10
        answer = expect(trial.post_allocation("01-0003"), 409)
        assert answer["code"] == "stock_insufficient"
        assert {trial.consignment_status(code) for code in ("C1", "C2")} == {"withdrawn"}

    def test_at_the_floor_one_is_given_and_below_it_none(self, house: House) -> None:
        """Exactly three of every arm suffice, and the arm that is wanted is not what decides [B6]"""
        trial = supply.trial(house, per_arm=3)
        assert holds(trial)
        trial.allocate("01-0001")
        assert not holds(trial)
        assert trial.consignment_status("C1") == "assignable"
        expect(trial.post_allocation("01-0002"), 409)

    def test_what_was_withdrawn_is_never_mixed_in_again(self, house: House) -> None:
        """Withdrawal stands though the refusal was rolled back, and though kits come back from quarantine [B5]"""
        trial = supply.trial(house, per_arm=3)
        [aside, *_rest] = some_of(trial, "C1", ARMS[0])
        quarantine(trial, aside)
        expect(trial.post_allocation("01-0001"), 409)
        assert trial.consignment_status("C1") == "withdrawn"
        release = trial.supply_manager.post(
            f"{S}/kits/{aside}/release", json={"reason": "It was the probe."}, step_up=True
        )
        assert expect(release, 200)["status"] == "in_stock"
        assert trial.left_of("C1") == {ARMS[0]: 3, ARMS[1]: 3}
        expect(trial.post_allocation("01-0001"), 409)
        assert not any(kit["usable"] for kit in trial.site_kits())
        trial.stock("C2")
        assert trial.allocate("01-0001")["kit_code"] in trial.arms_of("C2")
        assert trial.consignment_status("C1") == "withdrawn"

    def test_withdrawal_waits_for_whoever_has_the_stock(self, house: House) -> None:
        """A refusal withdraws under the lock of the stock, never beside somebody who draws from it [B5, custody "Lock order"]"""
        if not house.deployment.database.is_postgresql:
            pytest.skip("SQLite has one writer: nobody withdraws beside anybody")
        trial = supply.trial(house, per_arm=3)
        quarantine(trial, some_of(trial, "C1", ARMS[0])[0])
        draw = StockDraw()
        with pytest.raises(StockInsufficient):
            trial.act(lambda act: draw.offer(act, SITE, ZONE, ARM_CODES))
        database = house.deployment.database
        study_id = trial.act(lambda act: act.study.study_id)

        def withdraw() -> None:
            with database.transaction() as tx:
                tx.wait_for_locks(200)
                draw.on_refusal(tx, StockInsufficient())

        with database.transaction() as holder:
            kits.lock_stock(holder, study_id, SITE)
            with pytest.raises(TryAgain):
                withdraw()
        assert trial.consignment_status("C1") == "assignable"
        withdraw()
        assert trial.consignment_status("C1") == "withdrawn"

    def test_the_refusal_is_one_whichever_arm_is_short(self, house: House) -> None:
        """Same body, same headers, same entry; no kit and no slot is used [B6, BLD-08, ASG-16]"""
        trial = supply.trial(house, per_arm=3, sites=("01", "02"))
        doctor, other = trial.another("investigator", "02"), trial.another("pharmacist", "02")
        drill(doctor, house.person("investigator", site="02"), site="02")
        trial.stock("C2", per_arm=3, site="02", by=other)
        expect(trial.study_admin.post(f"{S}/sites/02/activation", step_up=True), 200)
        quarantine(trial, some_of(trial, "C1", ARMS[0])[0])
        aside = some_of(trial, "C2", ARMS[1])[0]
        expect(other.post(f"{S}/kits/{aside}/quarantine", json={"reason": "Fridge."}), 200)
        one, two = trial.post_allocation("S-1"), trial.post_allocation("S-2", "02", doctor)
        assert one.status_code == two.status_code == 409
        assert bare(one.json()) == bare(two.json())
        assert {k: v for k, v in one.headers.items() if k != "x-request-id"} == {
            k: v for k, v in two.headers.items() if k != "x-request-id"
        }
        first, second = trial.entries("allocation:create")
        for entry, consignment in ((first, "C1"), (second, "C2")):
            assert entry["after"] == {
                "code": "stock_insufficient",
                "withdrawn_consignments": [consignment],
                "alert": "supply_manager",
            }
        assert first.keys() == second.keys()
        assert all("assigned" not in trial.statuses(code).values() for code in ("C1", "C2"))
        with house.deployment.database.transaction() as tx:
            assert tx.execute(select(tables.stratum.c.allocated)).scalars().all() == [0]


class TestConsignment:
    def test_the_soonest_expiring_is_drawn_from_first(self, house: House) -> None:
        """As long as it holds the floor, whatever came first [B5, KIT-04]"""
        trial = supply.trial(house)
        trial.stock("C2", per_arm=4, expires_on="2027-01-31")
        trial.stock("C3", per_arm=4, expires_on="2027-06-30")
        soon = trial.arms_of("C2")
        assert trial.allocate("01-0001")["kit_code"] in soon
        while holds_of(trial, "C2"):
            assert trial.post_allocation(f"x{len(trial.entries('allocation:create'))}").json()["kit_code"] in soon
        assert trial.allocate("01-0099")["kit_code"] in trial.arms_of("C3")

    def test_one_date_stands_for_all_its_kits(self, house: House) -> None:
        """The earliest expiry ends the whole consignment, so that no answer depends on a kit's own date [B11]"""
        trial = supply.trial(house, per_arm=3)
        trial.stock("C2", expires_on={ARMS[0]: "2026-12-01", ARMS[1]: "2028-12-31"})
        house.clock.advance(days=10)
        usable = {kit["consignment_code"]: kit["usable"] for kit in trial.site_kits()}
        assert usable == {"C1": True, "C2": False}
        assert trial.allocate("01-0001")["kit_code"] in trial.arms_of("C1")

    def test_ends_at_midnight_of_the_site(self, house: House) -> None:
        """From the day on, in the zone of the site: eight hours earlier in Shanghai than in a zone of UTC [B11, KIT-04]"""
        trial = supply.trial(house, per_arm=3)
        site = {"site_code": "02", "name": "Hospital 02", "timezone": "UTC"}
        expect(trial.study_admin.post(f"{S}/sites", json=site), 201)
        other = trial.another("pharmacist", "02")
        trial.stock("C2", expires_on="2026-12-01")
        trial.stock("C3", expires_on="2026-12-01", site="02", by=other)
        midnight = datetime(2026, 11, 30, 16, 0, tzinfo=UTC)
        for caller in (trial.pharmacist, trial.investigator, other):
            caller.token()
        house.clock.advance(midnight - house.clock.now)
        for caller in (trial.pharmacist, trial.investigator, other, trial.study_admin):
            caller.token()
        house.clock._now = datetime(2026, 11, 30, 15, 59, 58, tzinfo=UTC)
        assert usable_codes(trial, "01") == {"C1", "C2"}
        assert trial.allocate("01-0001")["kit_code"] in trial.arms_of("C2")
        house.clock._now = midnight
        assert usable_codes(trial, "01") == {"C1"}
        assert usable_codes(trial, "02", other) == {"C3"}
        assert trial.allocate("01-0002")["kit_code"] in trial.arms_of("C1")


def usable_codes(trial: Trial, site: str, by: Caller | None = None) -> set[str]:
    """Return the consignments of a site that hold something usable."""
    return {kit["consignment_code"] for kit in trial.site_kits(site, by) if kit["usable"]}


def holds(trial: Trial) -> bool:
    """Return whether site 01 holds the floor in some consignment."""
    return trial.act(lambda act: holds_floor(act, SITE, ZONE, ARM_CODES))


def holds_of(trial: Trial, code: str) -> bool:
    """Return whether a consignment holds the floor of three."""
    left = trial.left_of(code)
    return all(left[arm] >= 3 for arm in ARMS)


def choices(trial: Trial, times: int) -> list[tuple[str, str]]:
    """Return which kits were offered for the two arms, again and again from the same stock."""

    def work(act: Act) -> list[tuple[str, str]]:
        offers = [StockDraw().offer(act, SITE, ZONE, ARM_CODES) for _ in range(times)]
        return [(offer[ARM_CODES[0]].kit_code, offer[ARM_CODES[1]].kit_code) for offer in offers]

    return trial.act(work)


def chi_square_p(observed: Sequence[int]) -> float:
    """Return how likely counts as uneven as these are under equal chances (Wilson and Hilferty 1931)."""
    expected, freedom = sum(observed) / len(observed), len(observed) - 1
    square = sum((count - expected) ** 2 for count in observed) / expected
    spread = 2 / (9 * freedom)
    return 1 - NormalDist().cdf(((square / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)


class TestChoice:
    """Fixed seeds: what passes passes always, and a limit of 1e-6 tells a wrong law from chance."""

    def test_every_kit_of_an_arm_is_as_likely(self, house: House) -> None:
        """For each arm, and for each pair of kits of the two arms, so that nothing links them [B5, BLD-06]"""
        trial = supply.trial(house, per_arm=8)
        codes = trial.arms_of("C1")
        of_arm = {arm: [kit for kit in codes if codes[kit] == arm] for arm in ARMS}
        chosen = choices(trial, 1600)
        for side, arm in enumerate(ARMS):
            counts = Counter(pair[side] for pair in chosen)
            assert chi_square_p([counts[kit] for kit in of_arm[arm]]) > 1e-6
        pairs = Counter(chosen)
        assert chi_square_p([pairs[one, two] for one in of_arm[ARMS[0]] for two in of_arm[ARMS[1]]]) > 1e-6

    def test_the_order_of_codes_plays_no_part(self, house: House) -> None:
        """The lower and the upper half of the codes are chosen alike, and one choice says nothing of the next [B4, B5]"""
        trial = supply.trial(house, per_arm=8)
        codes = trial.arms_of("C1")
        ranks: dict[str, int] = {}
        for arm in ARMS:
            ranks |= {kit: rank for rank, kit in enumerate(kit for kit in codes if codes[kit] == arm)}
        chosen = choices(trial, 800)
        halves = Counter(ranks[kit] // 4 for pair in chosen for kit in pair)
        assert chi_square_p([halves[0], halves[1]]) > 1e-6
        following = Counter(
            (ranks[a] // 4, ranks[b] // 4) for (a, _), (b, _) in zip(chosen[::2], chosen[1::2], strict=True)
        )
        assert chi_square_p([following[cell] for cell in ((0, 0), (0, 1), (1, 0), (1, 1))]) > 1e-6

    def test_a_first_match_would_be_caught(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Planted: the kits come in the order of their codes, as a query without care would give them [B5]"""
        trial = supply.trial(house, per_arm=8)

        def by_code(act: Act, consignment: Assignable, _sample: int) -> Iterator[SealedKit]:
            found = kits.list_in_stock(act.tx, act.study.study_id, consignment)
            return iter(sorted(found, key=lambda kit: kit.kit_code))

        monkeypatch.setattr(stock, "_in_random_order", by_code)
        codes = trial.arms_of("C1")
        counts = Counter(one for one, _ in choices(trial, 200))
        assert chi_square_p([counts[kit] for kit in codes if codes[kit] == ARMS[0]]) < 1e-6

    def test_no_statement_tells_the_order(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same rows, read by the same statements, give another kit by chance that no statement holds [B3, B5, T13]"""
        trial = supply.trial(house, per_arm=60)
        monkeypatch.setattr(stock, "_random_places", lambda *_: list(range(60)))
        chosen = choices(trial, 60)
        assert len({one for one, _ in chosen}) > 10
        assert len({two for _, two in chosen}) > 10

    def test_the_sample_grows_where_an_arm_is_rare(self, house: House) -> None:
        """One arm in thirty: the first sample does not show its floor, and the rest is opened too [B5]"""
        trial = supply.trial(house, per_arm={ARMS[0]: 90, ARMS[1]: 3})
        chosen = choices(trial, 60)
        rare = Counter(two for _, two in chosen)
        assert len(rare) == 3


class TestAtOnce:
    def test_two_subjects_never_get_one_kit(self, house: House) -> None:
        """Twelve allocations and twelve further kits by six hands: every one another kit [KIT-01, 2.3.4]"""
        trial = supply.trial(house, per_arm=30, length=40)
        subjects = [f"01-{number:04}" for number in range(12)]
        with ThreadPoolExecutor(6) as hands:
            first = list(hands.map(trial.post_allocation, subjects))
            second = list(
                hands.map(
                    lambda subject: trial.pharmacist.post(f"{S}/subjects/{subject}/kits", json={"visit": "V2"}),
                    subjects,
                )
            )
        codes = [expect(answer, 201)["kit_code"] for answer in (*first, *second)]
        assert len(set(codes)) == 24
        assert Counter(trial.statuses("C1").values()) == {"assigned": 24, "in_stock": 36}

    def test_the_same_request_at_once_is_one_kit(self, house: House) -> None:
        """Six times the same visit: one kit, answered to all [C4]"""
        trial = supply.trial(house)
        trial.allocate("01-0001")
        with ThreadPoolExecutor(6) as hands:
            path = f"{S}/subjects/01-0001/kits"
            answers = list(hands.map(lambda visit: trial.pharmacist.post(path, json={"visit": visit}), ["V2"] * 6))
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
        assert len({answer.json()["kit_code"] for answer in answers}) == 1
        assert Counter(trial.statuses("C1").values())["assigned"] == 2
