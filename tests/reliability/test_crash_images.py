"""The power is cut at any operation of SQLite's: every image opens, is whole, and holds all that was acknowledged."""

import hashlib
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

import pytest
from sqlalchemy import select, text

from app.storage import tables
from app.storage.database import Database
from tests.harness import STUDY, House
from tests.reliability.crash_images import Image, Operation, images, recorded, why_not
from tests.reliability.fail_points import Sent
from tests.reliability.records import check_tables
from tests.reliability.tally import Tally
from tests.running_study import S, allocation_of, running_study

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(0),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
SUBJECTS: Final = 40


def record(house: House, folder: Path, pragmas: tuple[str, ...] = ()) -> tuple[list[Operation], bytes]:
    """Return what the service does while it allocates, and the database that it begins with."""
    study = running_study(house, subjects=0, kits_per_arm=40, length=2 * SUBJECTS)
    headers = {"Authorization": f"Bearer {study.investigator.token()}"}
    requests = {}
    for number in range(1, SUBJECTS + 1):
        subject = f"01-{number:04}"
        requests[subject] = Sent.by(
            house.client, "POST", f"{S}/allocations", headers=headers, json=allocation_of(subject)
        ).told()
    database = house.deployment.database.sqlite_file
    assert database is not None
    house.leave()
    base = database.read_bytes()
    told = {
        "settings": house.settings.model_dump(mode="json"),
        "now": house.clock.now.isoformat(),
        "seed": "recorded",
        "database": str(database),
        "pragmas": pragmas,
        "requests": requests,
    }
    operations = recorded(folder, told)
    house.open()
    assert sum(operation.kind == "answer" for operation in operations) == SUBJECTS
    return operations, base


def fault_of(image: Image, database: Path) -> str | None:
    """Return what is wrong with an image, by the service's own way of opening a database; None for a whole one."""
    image.put(database)
    opened = Database(f"sqlite:///{database}")
    try:
        with opened.transaction() as tx:
            if tx.execute(text("PRAGMA integrity_check")).scalars().all() != ["ok"]:
                return "not whole"
            present = set(tx.execute(select(tables.allocation.c.subject_id)).scalars())
        if image.acknowledged - present:
            return "lost"
        check_tables(opened, STUDY)
    # Whatever the service would stumble over is what is counted here.
    except AssertionError:
        return "inconsistent"
    except Exception as error:  # noqa: BLE001  # the kind is told
        return type(error).__name__
    finally:
        opened.close()
    return None


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize("many", [500])
def test_no_image_is_broken_or_lacks_what_was_acknowledged(
    house: House, tmp_path: Path, many: int, round_seed: int, tally: Tally
) -> None:
    """Synced writes and a random part of the others, opened with the production's settings [INT-01, C6; T7]"""
    operations, base = record(house, tmp_path)
    place = tmp_path / "image.sqlite"
    different = set()
    for image in images(operations, base, many, Random(round_seed)):
        assert fault_of(image, place) is None, f"image after {image.at} operations"
        different.add(hashlib.sha256(repr(sorted(image.files.items())).encode()).digest())
    assert len(different) > many // 4
    tally(operations=len(operations), images=many, different_images=len(different))


@pytest.mark.parametrize("database_kind", ["sqlite"])
@pytest.mark.parametrize(
    "pragmas", [("synchronous=OFF",), ("journal_mode=WAL", "synchronous=NORMAL")], ids=["off", "normal with WAL"]
)
def test_settings_that_lose_are_seen_to_lose(
    house: House, tmp_path: Path, pragmas: tuple[str, ...], round_seed: int
) -> None:
    """Negative control: the settings that the service does not use lose what was acknowledged, or break the file [T7]"""
    operations, base = record(house, tmp_path, pragmas)
    faults = Counter(
        fault_of(image, tmp_path / "image.sqlite") for image in images(operations, base, 200, Random(round_seed))
    )
    assert faults["lost"] + faults["not whole"] > 20, faults
