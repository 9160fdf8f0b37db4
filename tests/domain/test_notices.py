"""What a notice says, and when it is tried again."""

from datetime import UTC, datetime, timedelta

import pytest

from app.domain.notices import PAUSES, check_email, mail_subject, mail_text, next_try_at
from app.errors import Invalid

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


class TestNextTry:
    def test_bounds(self) -> None:
        """Each pause is up to a fifth shorter or longer, and after the last there is none. [EUB-12, T31]"""
        for failures, pause in enumerate(PAUSES, start=1):
            assert next_try_at(failures, NOW, b"\x00\x00") == NOW + 0.8 * pause
            assert next_try_at(failures, NOW, b"\xff\xff") == NOW + 1.2 * pause
        assert next_try_at(len(PAUSES) + 1, NOW, b"\x00\x00") is None
        assert timedelta(days=1) < sum(PAUSES, timedelta()) < timedelta(days=3)


class TestMail:
    def test_words(self) -> None:
        """The subject line names no subject; what is not known is a dash. [BLD-14]"""
        assert mail_subject("code_break.recorded", "S1", "live") == "S1: code break"
        text = mail_text("code_break.recorded", "now", {"subject_id": None, "site_code": "01"})
        assert "Subject: -\nSite: 01\n" in text

    @pytest.mark.parametrize("address", ["a@example.org", "o'neil+safety@mail.example.org"])
    def test_address(self, address: str) -> None:
        """An address of the usual form is taken as it stands."""
        assert check_email(address) == address

    @pytest.mark.parametrize(
        "address", ["", "a@b", "a@example..org", "a@example.org\n", "<a@example.org>", "é@example.org"]
    )
    def test_no_address(self, address: str) -> None:
        """Nothing that could carry a second recipient or a header. [BLD-14]"""
        with pytest.raises(Invalid):
            check_email(address)
