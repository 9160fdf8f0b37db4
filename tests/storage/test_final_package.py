"""What the final package is made of, read page by page."""

from uuid import uuid4

from sqlalchemy import Connection, insert

from app.storage import final_package, tables
from app.storage.database import Transaction
from tests.storage.builders import a_row


def test_more_allocations_than_a_page(connection: Connection) -> None:
    """Every allocation is given once, however many pages they fill, the last one exactly included. (custody, exports)"""
    study = a_row(tables.study)
    connection.execute(insert(tables.study), study)
    ids = [uuid4() for _ in range(1000)]
    rows = [
        a_row(
            tables.allocation,
            allocation_id=row_id,
            subject_key=f"s{number}",
            randomization_number=f"n{number}",
            ordinal=number,
            position=number,
        )
        for number, row_id in enumerate(ids)
    ]
    connection.execute(insert(tables.allocation), rows)
    pages = list(final_package.walk_allocations(Transaction(connection), study["study_id"]))
    assert [len(page) for page in pages] == [500, 500, 0]
    assert sorted(one.allocation_id for page in pages for one in page) == sorted(ids)
