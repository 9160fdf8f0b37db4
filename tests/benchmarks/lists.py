"""How long a list takes: made, reported on, committed to, sealed, stored; and beside it the bare storing of the same rows.

    python -m tests.benchmarks.lists [slots] [database URL]

Without a URL it starts a PostgreSQL of its own. ``whole`` is the statistician's request over HTTP. The stages are timed one by
one on a list of the same specification; where they run interwoven, a stage is what it adds. ``bare`` is a COPY of the very rows
into an empty table with the same indexes (on SQLite an ``executemany``), ``ratio`` is ``whole`` through ``bare``, and ``checked``
is what the approver's look through every slot takes.
"""

import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from app.domain.codes import draw_kit_codes
from app.domain.contents import SALT_SIZE
from app.domain.encoding import encode
from app.domain.merkle import salted_leaf, tiles
from app.domain.quality import quality_report
from app.domain.schedules import SEED_SIZE, Specification, generate_stratum
from app.domain.words import Action, StudyCode
from app.policy import Decision
from app.services import lists
from app.services.audited import Act
from app.services.context import RequestContext, SystemEntropy
from app.storage import commitments, migrate, schedules, studies
from tests.databases import postgres_server
from tests.harness import STUDY, House, expect, house

SLOTS: Final = 1_000_000
_BLOCK: Final = 1 << 20


def measure_list(url: str, slots: int = SLOTS) -> dict[str, float]:
    """Return seconds by stage for a list of so many slots in an empty database, the bare storing, and the ratio to it."""
    migrate.upgrade(url)
    with tempfile.TemporaryDirectory() as folder, house(url, Path(folder)) as opened:
        opened.register_study()
        statistician = opened.person("statistician")
        body = {"block_sizes": [4, 6, 8], "length_per_stratum": slots, "fill": "exact"}
        begun = time.perf_counter()
        answer = expect(statistician.post(f"/v1/studies/{STUDY}/schedules", json=body, step_up=True), 201)
        whole = time.perf_counter() - begun
        bare = _time_bare(opened, Path(folder) / "rows")
        stages = _time_stages(opened, UUID(answer["schedule_id"]))
    return {
        "slots": slots,
        **stages,
        "stored": whole - sum(stages.values()) + stages["checked"],
        "whole": whole,
        "bare": bare,
        "ratio": whole / bare,
    }


def measure_kit_codes(count: int = SLOTS) -> dict[str, float]:
    """Return the seconds that drawing so many kit codes with their check characters takes."""
    return {"codes": count, "seconds": _seconds(lambda: draw_kit_codes(SystemEntropy(), count, frozenset()))}


def _time_stages(opened: House, schedule_id: UUID) -> dict[str, float]:
    with _act(opened) as act:
        head = schedules.get_schedule(act.tx, act.study.study_id, schedule_id)
        kept = commitments.get_list_commitment(act.tx, act.study.study_id, schedule_id)
        spec = lists.open_specification(act, schedule_id, kept.sealed_specification)
        seed, (stratum,) = bytes(SEED_SIZE), spec.strata
        stratum_ids = schedules.list_strata(act.tx, act.study.study_id)
        maker = lists.ListMaker(act, spec, schedule_id, stratum_ids, seed, lists.UsedNumbers())
        made = _seconds(lambda: _drain(generate_stratum(spec, stratum, seed)))
        committed_to = _seconds(lambda: _drain(tiles(_leaves(spec, seed)))) - made
        return {
            "made": made,
            "reported": _seconds(lambda: quality_report(spec, [(stratum, generate_stratum(spec, stratum, seed))])),
            "committed to": committed_to,
            "sealed": _seconds(lambda: _drain(maker.slots())) - made - committed_to,
            "checked": _seconds(lambda: lists.check_list(act, head)),
        }


def _leaves(spec: Specification, seed: bytes) -> Iterator[bytes]:
    """Yield leaves like those of the list, under one salt and one number."""
    (stratum,) = spec.strata
    salt = bytes(SALT_SIZE)
    head = encode("slot", spec.study_code, spec.mode, spec.list_id, spec.segment_number, stratum.stratum_code)
    for position, arm_code, block, block_size in generate_stratum(spec, stratum, seed):
        yield salted_leaf(salt, head + encode(position, arm_code, block, block_size, "R4K7QK"))


def _time_bare(opened: House, rows: Path) -> float:
    """Return the seconds that storing the rows of the list alone takes, in an empty table with the same indexes."""
    with _act(opened) as act:
        driver = act.tx.driver_connection
        if not act.tx.is_postgresql:
            stored = driver.execute("SELECT * FROM slot").fetchall()
            made = driver.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'slot'").fetchone()[0]
            driver.execute(made.replace("slot", "bare_slot"))
            return _seconds(lambda: driver.executemany("INSERT INTO bare_slot VALUES (?, ?, ?, ?, ?, ?, ?)", stored))
        driver.execute("CREATE TABLE bare_slot (LIKE slot INCLUDING INDEXES)")
        with rows.open("wb") as file, driver.cursor().copy("COPY slot TO STDOUT") as copied:
            file.writelines(copied)

        def copy() -> None:
            with rows.open("rb") as file, driver.cursor().copy("COPY bare_slot FROM STDIN") as copying:
                while block := file.read(_BLOCK):
                    copying.write(block)

        return _seconds(copy)


@contextmanager
def _act(opened: House) -> Iterator[Act]:
    """Give an act on the study; what is stored with it is one table beside the service's own."""
    deployment = opened.deployment
    ctx = RequestContext(deployment, Action.GENERATE_SCHEDULE, None, "benchmark", "")
    with deployment.database.transaction() as tx:
        yield Act(tx, ctx, None, Decision(None, None), studies.find_study(tx, StudyCode(STUDY)), ctx.now())


def _drain(source: Iterable[object]) -> None:
    deque(source, maxlen=0)


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main(arguments: list[str]) -> None:
    slots = int(arguments[0]) if arguments else SLOTS
    if len(arguments) > 1:
        figures = measure_list(arguments[1], slots)
    else:
        with postgres_server() as server, server.database() as url:
            figures = measure_list(url, slots)
    sys.stdout.write(json.dumps({name: round(figure, 3) for name, figure in figures.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
