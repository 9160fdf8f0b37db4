"""The parts of the long form: which tests, and what their rounds are to reach together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ROUNDS: Final = "rounds"
"""The count that the runner keeps itself: rounds that ended well."""


@dataclass(frozen=True)
class Part:
    """Tests of which one round is run after the other until each goal is reached."""

    name: str
    paths: tuple[str, ...]
    """What pytest is given: files, or single tests."""
    goals: Mapping[str, int] = field(default_factory=lambda: {ROUNDS: 1})
    """By the name under which the tests tally, ``postgresql.kills``; one round where nothing is said."""
    minutes: float = 60
    """After which a round counts as hung."""

    @property
    def file_name(self) -> str:
        """The name of the result, without its folder."""
        return self.name.replace(" ", "-") + ".json"


_FAILOVER: Final = "tests/reliability/test_failover.py"
_UNCERTAIN: Final = "tests/reliability/test_uncertain_commit.py"
_CRASHES: Final = "tests/reliability/test_server_crashes.py"

PARTS: Final = (
    Part("kills", ("tests/reliability/test_kill.py",), {"postgresql.kills": 200, "sqlite.kills": 200}),
    Part("idempotency", ("tests/reliability/test_idempotency.py",), {"postgresql.keys": 1000, "sqlite.keys": 1000}),
    Part("load", ("tests/reliability/test_load.py",)),
    Part("rotation", ("tests/reliability/test_rotation.py",), minutes=180),
    Part("failover", (f"{_FAILOVER}::test_primary_lost_under_load",), {"failovers": 50}),
    Part("cancelled waits", (f"{_UNCERTAIN}::test_many_cancelled_waits",), {"cancelled_waits": 200}),
    Part("server crashes", (f"{_CRASHES}::test_crash_under_load",), {"crashes": 100}),
    Part("replicas", ("tests/reliability/test_replicas.py",)),
    Part("chaos", ("tests/reliability/test_chaos.py",), {"postgresql.allocations": 20_000}),
    Part(
        "database controls",
        (
            f"{_FAILOVER}::test_pair_that_is_not_synchronous",
            f"{_UNCERTAIN}::test_build_that_ignores_the_warning",
            f"{_UNCERTAIN}::test_keeper_that_does_not_wait",
            f"{_CRASHES}::test_server_that_forgets",
        ),
    ),
)
