"""What the service does by itself: noise entered, checkpoints written, the database compared with the sink."""

from time import monotonic, sleep

import pytest
from structlog.testing import capture_logs

from app.domain.words import StudyCode
from app.errors import DatabaseUnavailable
from app.services.checkpoints import INTERVAL
from app.services.keeper import Keeper
from app.services.noise import OTHER, QUOTA, NoiseMeter
from tests.doors import Fault, failing
from tests.harness import STUDY, House


def noise(house: House) -> list[tuple[str, int]]:
    """Return network and count of every entry of noise."""
    return [
        (entry["after"]["network"], entry["after"]["count"])
        for entry in house.trail()
        if entry["action"] == "session:noise"
    ]


class TestNoise:
    def test_is_one_entry_for_each_network(self, house: House) -> None:
        """Unknown callers are counted by network, and entered off the request path under the service's name. [E1, AUD-17]"""
        for _ in range(3):
            assert house.client.get("/v1/me").status_code == 401
        house.deployment.noise.count("203.0.113.0/24")
        assert noise(house) == []
        Keeper(house.deployment).round()
        assert noise(house) == [("203.0.113.0/24", 1), ("unknown", 3)]
        entry = next(one for one in house.trail() if one["action"] == "session:noise")
        assert (entry["actor"], entry["role"]) == ("snose", None)
        Keeper(house.deployment).round()
        assert len(noise(house)) == 2

    def test_is_bounded(self) -> None:
        """Past the quota of networks all others are counted together: a flood is no flood of entries. [rule E1]"""
        meter = NoiseMeter()
        for number in range(QUOTA + 50):
            meter.count(f"10.{number}.0.0/24")
        meter.count("10.0.0.0/24")
        counts = meter.take()
        assert len(counts) == QUOTA + 1
        assert (counts["10.0.0.0/24"], counts[OTHER]) == (2, 50)
        assert meter.take() == {}

    def test_that_cannot_be_entered_is_counted_again(self, house: House) -> None:
        """A round that fails loses no count, and enters none twice. [rule E1]"""
        for network in ("a", "b", "c"):
            house.deployment.noise.count(network)
        with failing(house, Fault.NONE, Fault.DOWN) as deployment, pytest.raises(DatabaseUnavailable):
            Keeper(deployment)._enter_noise()
        assert noise(house) == [("a", 1)]
        Keeper(house.deployment).round()
        assert sorted(noise(house)) == [("a", 1), ("b", 1), ("c", 1)]


class TestRound:
    def test_keeps_the_checkpoints_of_the_studies_in_the_service_log(self, house: House) -> None:
        """The service's own log holds the checkpoints of the others, and each is in the sink. [custody "The trail"]"""
        house.register_study()
        Keeper(house.deployment).round()
        entry = house.trail()[-1]
        assert entry["action"] == "checkpoint:publish"
        (named,) = entry["after"]["logs"]
        held = house.deployment.checkpoints.held()
        assert (named["origin"], named["size"]) == (house.deployment.origin(StudyCode(STUDY)), len(house.trail(STUDY)))
        assert held[named["origin"]].root == named["root"]
        assert held[house.deployment.origin(None)].size == entry["index"] + 1
        count = len(house.bodies())
        Keeper(house.deployment).round()
        assert len(house.bodies()) == count

    def test_tries_each_step_again(self, house: House) -> None:
        """What fails is told in the service's output, and stops neither the other steps nor the next round."""
        house.register_study()
        with failing(house, *[Fault.DOWN] * 9) as deployment, capture_logs() as logs:
            Keeper(deployment).round()
        assert [(log["step"], log["kind"]) for log in logs] == [
            ("take_in_keys", "DatabaseUnavailable"),
            ("compare", "DatabaseUnavailable"),
            ("put_aside", "DatabaseUnavailable"),
            ("tell_overdue", "DatabaseUnavailable"),
            ("publish", "DatabaseUnavailable"),
        ]
        with capture_logs() as logs:
            Keeper(house.deployment).round()
        assert logs == []
        assert house.trail()[-1]["action"] == "checkpoint:publish"

    def test_comes_every_interval_and_at_the_end(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stopped service leaves everything under a checkpoint. [AUD-02]"""
        monkeypatch.setattr("app.services.keeper.INTERVAL", INTERVAL / 3000)
        running = Keeper(house.deployment)
        house.deployment.noise.count("first")
        running.start()
        deadline = monotonic() + 30
        while not noise(house) and monotonic() < deadline:
            sleep(0.01)
        assert noise(house) == [("first", 1)]
        house.deployment.noise.count("last")
        running.stop()
        assert noise(house)[-1] == ("last", 1)
        assert not running._thread.is_alive()
