"""What a notice says, and when it is tried again."""

from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.domain.notices import (
    PAUSES,
    check_email,
    check_url,
    mail_subject,
    mail_text,
    may_be_sent_to,
    next_try_at,
    webhook_headers,
    webhook_secret,
)
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


INSIDE = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.1.2.3"),  # noqa: S104  # as an address to send to
    *("169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.0.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
    *(
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:8.8.8.8",
    ),
    *("::ffff:0:10.0.0.1", "::10.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::1"),
    *("100::1", "fc00::1", "fd00:ec2::254", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1"),
    *("ff0e::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1", "2001:db8::1"),
    *("2002:7f00:1::", "2002:a00:1::", "2002:c0a8:101::1", "2002:808:808::1", "3fff::1", "4000::1", "5f00::1"),
    *("", "localhost", "0x7f.1", "127.1", "2130706433", "017700000001", "1.2.3.4.5", "[::1]", "8.8.8.8 "),
)
OUTSIDE = ("8.8.8.8", "93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e")


class TestAddresses:
    def test_inside(self) -> None:
        """No private, loopback, link-local, mapped, tunnelled or documented address, nor anything that is none. [T31]"""
        assert len(set(INSIDE)) >= 60
        assert [address for address in INSIDE if may_be_sent_to(address, may_stay_here=False)] == []
        here = [address for address in INSIDE if may_be_sent_to(address, may_stay_here=True)]
        assert here == ["127.0.0.1", "127.1.2.3", "::1"]

    def test_outside(self) -> None:
        """What is of the public network is asked. [T31]"""
        assert [address for address in OUTSIDE if not may_be_sent_to(address, may_stay_here=False)] == []


class TestUrls:
    def test_taken(self) -> None:
        """HTTPS by name or public number; plain HTTP to this machine in a test. [T31]"""
        for url in ("https://edc.example.org", "https://edc.example.org:8443/a/b?c=d", "https://8.8.8.8/x"):
            assert check_url(url, may_stay_here=False) == url
        for url in ("http://127.0.0.1:8080/x", "https://127.0.0.1/x", "http://[::1]:80"):
            assert check_url(url, may_stay_here=True) == url
            with pytest.raises(Invalid):
                check_url(url, may_stay_here=False)

    def test_refused(self) -> None:
        """Other schemes, credentials, fragments, spaces, broken ports, and every number inside. [T31]"""
        numbers = [f"https://[{one}]/" if ":" in one else f"https://{one}/" for one in INSIDE[:22]]
        others = [
            *("", "x", "http://edc.example.org", "ftp://edc.example.org", "file:///etc/passwd", "https://", "//x"),
            *("https://user:word@edc.example.org", "https://edc.example.org#x", "https://edc.example.org/a b"),
            *(
                "https://edc.example.org:0",
                "https://edc.example.org:99999",
                "https://[::1",
                "https://\u00e9.example.org",
            ),
            *("https://edc.example.org\\@127.0.0.1/", "https://edc.example.org/\r\nX: y", f"https://e.org/{'x' * 500}"),
        ]
        for url in numbers + others:
            with pytest.raises(Invalid):
                check_url(url, may_stay_here=False)
        with pytest.raises(Invalid):
            check_url("https://10.0.0.1/", may_stay_here=True)


class TestSignature:
    def test_by_the_library(self) -> None:
        """What is signed is what the library of Standard Webhooks verifies, and nothing else. [EUB-25, T31]"""
        key, now = bytes(range(32)), datetime.now(UTC)
        headers = webhook_headers(key, "m1", now, '{"a":1}')
        assert Webhook(webhook_secret(key)).verify('{"a":1}', dict(headers)) == {"a": 1}
        for body, changed in (('{"a":2}', headers), ('{"a":1}', {**headers, "webhook-id": "m2"})):
            with pytest.raises(WebhookVerificationError):
                Webhook(webhook_secret(key)).verify(body, dict(changed))
        with pytest.raises(WebhookVerificationError):
            Webhook(webhook_secret(bytes(32))).verify('{"a":1}', dict(headers))
