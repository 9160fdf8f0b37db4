"""Kits out of a large consignment are drawn by place, so that the work does not grow with the stock, and as evenly as ever."""

from collections import Counter

from app.services.stock import _DRAWS_PER_KIT, _SAMPLE_PER_ARM
from app.storage import kits, tables
from tests import supply
from tests.harness import House
from tests.security.test_dump import captured
from tests.services.test_stock import SITE, chi_square_p, choices, some_of
from tests.supply import ARMS, Trial

PER_ARM = 60


def leave(trial: Trial, arm: str, count: int) -> None:
    """Have all but so many kits of an arm used."""
    codes = some_of(trial, "C1", arm)[count:]
    trial.act(
        lambda act: (
            act.tx.execute(
                tables.kit.update().where(tables.kit.c.kit_code.in_(codes)).values(status="dispensed")
            ).rowcount
        )
    )


def looks(trial: Trial, times: int) -> list[str]:
    """Return how the kits were looked at, one look after the other while kits are drawn: by places, or all of them."""
    with captured() as statements:
        choices(trial, times)
    found = [statement for statement, _ in statements if "kit.map_index, kit.sealed" in statement]
    return ["places" if "ANY" in one or "json_each" in one else "all" for one in found]


class TestLargeConsignment:
    def test_it_is_large(self, house: House) -> None:
        """The premise of the tests here: the kit map is longer than the draws of one sample [B5]"""
        assert 3 * len(ARMS) * _SAMPLE_PER_ARM * _DRAWS_PER_KIT < 2 * PER_ARM

    def test_every_kit_is_as_likely(self, house: House) -> None:
        """Places of the kit map are drawn evenly, for each arm [B5, BLD-06]"""
        trial = supply.trial(house, per_arm=PER_ARM)
        chosen = choices(trial, 900)
        for ordinal, arm in enumerate(ARMS):
            counts = Counter(pair[ordinal] for pair in chosen)
            assert chi_square_p([counts[kit] for kit in some_of(trial, "C1", arm)]) > 1e-6

    def test_every_kit_is_as_likely_when_most_are_used(self, house: House) -> None:
        """Few places are still in stock, so the rest is put in a random order too, and nobody comes first [B5]"""
        trial = supply.trial(house, per_arm=PER_ARM)
        for arm in ARMS:
            leave(trial, arm, 4)
        chosen = choices(trial, 400)
        for ordinal, arm in enumerate(ARMS):
            counts = Counter(pair[ordinal] for pair in chosen)
            assert chi_square_p([counts[kit] for kit in some_of(trial, "C1", arm)]) > 1e-6

    def test_the_rest_is_looked_at_before_it_is_withdrawn(self, house: House) -> None:
        """An arm is down to its floor somewhere in a large map: it is found [B6]"""
        trial = supply.trial(house, per_arm=PER_ARM)
        leave(trial, ARMS[1], 3)
        assert len({two for _, two in choices(trial, 60)}) == 3

    def test_kits_at_places_come_in_the_order_of_the_places(self, house: House) -> None:
        """Used kits and places that are none are left out [B5]"""
        trial = supply.trial(house, per_arm=PER_ARM)
        leave(trial, ARMS[0], 10)

        def in_order(places: list[int]) -> list[int]:
            return trial.act(
                lambda act: [
                    kit.map_index
                    for consignment in kits.list_assignable_consignments(
                        act.tx, act.study.study_id, SITE, act.now.date()
                    )
                    for kit in kits.list_at_places(act.tx, act.study.study_id, consignment, places)
                ]
            )

        everywhere = in_order(list(range(2 * PER_ARM)))
        assert len(everywhere) == PER_ARM + 10
        assert in_order([*reversed(range(2 * PER_ARM)), 5000]) == everywhere[::-1]


class TestSample:
    """A reader of the server's log sees the places looked at, and where that was not enough: few of them are of some arm."""

    def test_one_that_is_large_enough_stays(self, house: House) -> None:
        """As many of each arm: by places, one look for each draw [B5]"""
        trial = supply.trial(house, per_arm=PER_ARM)
        assert looks(trial, 60) == ["places"] * 60

    def test_as_many_places_as_the_share_in_stock_calls_for(self, house: House) -> None:
        """Where most kits are used, more places are looked at from the second draw on, and never the whole stock again [B3, B5]"""
        trial = supply.trial(house, per_arm=3 * PER_ARM)
        for arm in ARMS:
            leave(trial, arm, PER_ARM)
        first, *others = looks(trial, 40)
        assert first == "places"
        assert others == ["all", *["places"] * 39]

    def test_one_that_was_nearly_too_small_is_larger_from_then_on(self, house: House) -> None:
        """Before an arm is so rare that a sample misses its floor, everything is looked at: no draw looks twice [B3, B5, T13]"""
        trial = supply.trial(house, per_arm=PER_ARM)
        leave(trial, ARMS[1], 14)
        found = looks(trial, 60)
        assert len(found) == 60
        assert found == sorted(found, reverse=True)
        assert {*found} == {"places", "all"}

    def test_one_that_was_too_small_is_everything_from_then_on(self, house: House) -> None:
        """What the second look tells is told once, and not at each draw, until the kits were known one by one [B3, B5, T13]"""
        trial = supply.trial(house, per_arm=PER_ARM)
        leave(trial, ARMS[1], 3)
        found = looks(trial, 60)
        assert found == ["places", *["all"] * 60]
