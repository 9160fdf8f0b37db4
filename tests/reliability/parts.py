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


_KILL: Final = "tests/reliability/test_kill.py"
_HISTORY: Final = "tests/reliability/test_history.py"
_IDEMPOTENCY: Final = "tests/reliability/test_idempotency.py"
_FAILOVER: Final = "tests/reliability/test_failover.py"
_UNCERTAIN: Final = "tests/reliability/test_uncertain_commit.py"
_CRASHES: Final = "tests/reliability/test_server_crashes.py"

PARTS: Final = (
    Part(
        "kills",
        (f"{_KILL}::test_kill_in_mid_traffic_loses_and_doubles_nothing",),
        {"postgresql.kills": 200, "postgresql.worker_kills": 200, "sqlite.kills": 200},
    ),
    Part(
        "history",
        (f"{_HISTORY}::test_one_order_explains_what_concurrent_clients_saw",),
        {"postgresql.operations": 100_000, "sqlite.operations": 30_000},
    ),
    Part(
        "idempotency",
        (f"{_IDEMPOTENCY}::test_one_key_many_times_at_once_is_one_act",),
        {"postgresql.keys": 1_000, "sqlite.keys": 1_000},
    ),
    Part(
        "controls",
        (
            f"{_KILL}::test_build_that_answers_before_its_commit_is_found",
            f"{_HISTORY}::test_broken_build_is_found",
            f"{_HISTORY}::test_build_without_claims_and_constraint_is_found",
            f"{_IDEMPOTENCY}::test_build_that_passes_keys_over_is_found",
        ),
    ),
    Part("load", ("tests/reliability/test_load.py",)),
    Part("restore", ("tests/security/test_restore_drill.py",)),
    Part("migrations", ("tests/migrations/test_killed.py",)),
    Part(
        "model",
        ("tests/reliability/test_model.py",),
        {
            f"{kind}.{name}": goal
            for kind in ("postgresql", "sqlite")
            for name, goal in (("trials", 2_000), ("steps", 100_000))
        },
    ),
    Part(
        "fuzz",
        ("tests/api/test_fuzz.py",),
        {"postgresql.requests": 20_000, "sqlite.requests": 20_000},
        minutes=180,
    ),
    Part("planted faults", ("tests/reliability/test_planted.py",), minutes=120),
    Part("slow start", (f"{_KILL}::test_workers_that_are_slow_to_start_are_waited_for",)),
    Part("rotation", ("tests/reliability/test_rotation.py",), minutes=180),
    Part("failover", (f"{_FAILOVER}::test_primary_lost_under_load",), {"failovers": 50}),
    Part("cancelled waits", (f"{_UNCERTAIN}::test_many_cancelled_waits",), {"cancelled_waits": 200}),
    Part("server crashes", (f"{_CRASHES}::test_crash_under_load",), {"crashes": 100}),
    Part("replicas", ("tests/reliability/test_replicas.py",)),
    Part("chaos", ("tests/reliability/test_chaos.py",), {"postgresql.allocations": 20_000}),
    Part("fail points", ("tests/reliability/test_fail_points.py",), minutes=120),
    Part(
        "disk errors",
        ("tests/reliability/test_io_errors.py",),
        {"sqlite.errors": 700, "log_errors": 100},
        minutes=120,
    ),
    Part("disk full", ("tests/reliability/test_disk_full.py",), {"fills": 50}),
    Part("clocks", ("tests/reliability/test_clocks.py",)),
    Part("crash images", ("tests/reliability/test_crash_images.py",), {"sqlite.images": 2000}),
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
