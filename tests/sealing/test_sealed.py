"""The sealed types of the domain: masked, bound to a place, one list of columns."""

import copy
import pickle

import pytest

from app.domain.sealed import Column, SealContext, Sealed
from tests.sealing.builders import NO_STUDY, STUDY

TOKEN = "v1.s1.AAAAAAAAAAAAAAAA.BBBB"


class TestSealed:
    def test_printed(self) -> None:
        """A sealed value never prints itself, alone or within another. (house rule 8)"""
        sealed = Sealed(TOKEN)
        for text in (repr(sealed), str(sealed), f"{sealed}", repr([sealed]), repr({"slot": (sealed,)})):
            assert TOKEN not in text
            assert "<sealed>" in text

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickled(self, protocol: int) -> None:
        """A sealed value is not pickled. (custody: in memory)"""
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(Sealed(TOKEN), protocol)

    def test_copied(self) -> None:
        """Nor is it copied by the way of pickling."""
        with pytest.raises(TypeError, match="not pickled"):
            copy.deepcopy(Sealed(TOKEN))

    def test_changed(self) -> None:
        """A sealed value is a value: equal by its text, never changed."""
        assert Sealed(TOKEN) == Sealed(TOKEN)
        with pytest.raises(AttributeError):
            Sealed(TOKEN).token = "x"  # type: ignore[misc]  # what the test shows to be refused


class TestColumn:
    def test_no_two_alike(self) -> None:
        """Every column of the database stands once, so that no two share their associated data. (T10)"""
        assert len({(column.table, column.column) for column in Column}) == len(Column) == 16

    @pytest.mark.parametrize("column", list(Column))
    def test_study_of_the_wrong_kind(self, column: Column) -> None:
        """What belongs to a study lies under its key alone; answers and credentials never do. (custody)"""
        if column in NO_STUDY:
            with pytest.raises(ValueError, match="never sealed under the key of a study"):
                SealContext(column, STUDY, ("row",))
        elif column.purpose != "restricted":
            with pytest.raises(ValueError, match="never sealed under the key of a deployment"):
                SealContext(column, None, ("row",))
        else:
            # The service's own log has restricted parts too.
            assert SealContext(column, None, ("row",)).study_code is None
            assert SealContext(column, STUDY, ("row",)).study_code == STUDY
