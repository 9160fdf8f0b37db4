"""Passwords: hashing, comparing, the rules for new ones, issued ones."""

import contextlib
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.words import Mode
from app.errors import IntegrityBroken, PasswordRefused, WrongCredentials
from app.identity import passwords
from app.identity.passwords import Passwords, issued_password, refuse_weak
from tests.identity.builders import GivenEntropy, SeededEntropy

PASSWORD = "gentle otters drift downstream"


def passwords_of(mode: Mode = Mode.TEST, seed: bytes = b"seed") -> Passwords:
    return Passwords(mode, SeededEntropy(seed))


class TestHash:
    def test_costs_in_live_mode(self) -> None:
        """Live hashes take three passes over 64 MiB in four lanes; nothing lowers that. (rule A10, USR-11)"""
        passwords = passwords_of(Mode.LIVE)
        kept = passwords.hash(PASSWORD)
        assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
        passwords.verify(PASSWORD, kept)
        with pytest.raises(WrongCredentials):
            passwords.verify(PASSWORD + " ", kept)

    def test_costs_in_test_mode(self) -> None:
        """A test deployment may take less. (rule A10)"""
        assert passwords_of().hash(PASSWORD).startswith("$argon2id$v=19$m=1024,t=1,p=1$")

    def test_same_password_twice(self) -> None:
        """Two people with one password have two hashes, neither of which shows it."""
        passwords = passwords_of()
        hashes = {passwords.hash(PASSWORD) for _ in range(3)}
        assert len(hashes) == 3
        assert not any(PASSWORD in kept for kept in hashes)

    def test_salt_from_the_injected_source(self) -> None:
        """Chance comes in as a value: the same source gives the same hash."""
        assert passwords_of().hash(PASSWORD) == passwords_of().hash(PASSWORD)
        assert passwords_of().hash(PASSWORD) != passwords_of(seed=b"other").hash(PASSWORD)


class TestVerify:
    @pytest.mark.parametrize("given", ["", PASSWORD.upper(), PASSWORD[:-1], PASSWORD + "\0", "x" * 100_000])
    def test_wrong(self, given: str) -> None:
        """A wrong password raises. (house rule 7)"""
        passwords = passwords_of()
        with pytest.raises(WrongCredentials):
            passwords.verify(given, passwords.hash(PASSWORD))

    def test_unknown_account(self) -> None:
        """An unknown account is refused like a wrong password, in the same words. (USR-10, USR-21)"""
        passwords = passwords_of()
        with pytest.raises(WrongCredentials) as unknown:
            passwords.verify(PASSWORD, None)
        with pytest.raises(WrongCredentials) as wrong:
            passwords.verify("another password", passwords.hash(PASSWORD))
        assert str(unknown.value) == str(wrong.value)
        assert unknown.value.code == wrong.value.code

    def test_password_of_nobody(self) -> None:
        """Not even the password that unknown accounts are compared with opens one."""
        entropy = SeededEntropy()
        nobody = SeededEntropy().draw("password", 32).hex()
        passwords = Passwords(Mode.TEST, entropy)
        assert entropy.drawn[0] == ("password", 32)
        with pytest.raises(WrongCredentials):
            passwords.verify(nobody, None)

    @pytest.mark.parametrize(
        "kept",
        ["", "x", PASSWORD, "$argon2id$v=19$m=1024,t=1,p=1$AAAA$BBBB", "$argon2\u00e9", "$2b$12$" + "a" * 53],
    )
    def test_damaged_hash(self, kept: str) -> None:
        """What is stored and is no hash is a matter of integrity, and lets nobody in."""
        with pytest.raises(IntegrityBroken):
            passwords_of().verify(PASSWORD, kept)

    def test_two_spellings_of_one_letter(self) -> None:
        """An accented letter typed as one or as two characters is one password. (NIST SP 800-63B)"""
        passwords = passwords_of()
        passwords.verify("cafe\u0301 au lait, s'il", passwords.hash("caf\u00e9 au lait, s'il"))

    def test_lone_surrogate(self) -> None:
        """Half a character is a wrong password and no fault. (rule G2)"""
        passwords = passwords_of()
        with pytest.raises(WrongCredentials):
            passwords.verify("\ud800" * 12, passwords.hash(PASSWORD))

    def test_many_at_once(self) -> None:
        """People who sign in together wait for their turn, and each gets an answer."""
        passwords = passwords_of()
        kept = passwords.hash(PASSWORD)
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda _: passwords.verify(PASSWORD, kept), range(40))) == [None] * 40

    def test_turn_after_refusals(self) -> None:
        """A refusal gives its turn back."""
        passwords = passwords_of()
        for kept in (None, "damaged", None, "damaged"):
            with pytest.raises((WrongCredentials, IntegrityBroken)):
                passwords.verify(PASSWORD, kept)
        passwords.verify(PASSWORD, passwords.hash(PASSWORD))


class TestRules:
    @pytest.mark.parametrize(
        "password",
        [
            PASSWORD,
            "otters drift",
            "x9!" * 3 + "abq",
            "кошка на крыше",
            "猫坐在屋顶上看月亮和星星",
            "0123456789" + "a" * 118,
            "ABCDE-23456-FGHJK-789MN",
        ],
    )
    def test_good(self, password: str) -> None:
        """Twelve to 128 characters of any kind are a password. (USR-11)"""
        refuse_weak(password, "investigator.012")

    @pytest.mark.parametrize(
        ("password", "why"),
        [
            ("otters drif", "12 to 128"),
            ("", "12 to 128"),
            ("0123456789" + "a" * 119, "12 to 128"),
            (" " * 12, "different characters"),
            ("\t \n " * 4, "different characters"),
            ("\u3000" * 12, "different characters"),
            ("abcdabcdabcd", "different characters"),
            ("a" * 128, "different characters"),
            ("correct horse battery staple", "tries first"),
            ("CorrectHorseBatteryStaple", "tries first"),
            ("qwertyuiopasdfgh", "tries first"),
            ("Password2026!", "tries first"),
            ("123password123", "tries first"),
            ("\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44\uff11\uff12\uff13\uff14", "tries first"),
            ("123456789012", "tries first"),
            ("my ann.smith 1", "user name"),
            ("xANN.SMITHx-otter", "user name"),
            ("otters drift\ud800", "can be written"),
        ],
    )
    def test_refused(self, password: str, why: str) -> None:
        """Short, long, blank, monotonous, common and name-bearing ones are refused, unrepeated."""
        with pytest.raises(PasswordRefused, match=why) as refused:
            refuse_weak(password, "ann.smith")
        assert refused.value.field == "new"
        assert not password.strip() or password not in str(refused.value)

    def test_very_short_name(self) -> None:
        """A name of one or two letters is in most sentences and hinders nothing."""
        refuse_weak(PASSWORD, "ot")
        with pytest.raises(PasswordRefused):
            refuse_weak(PASSWORD, "ott")

    def test_field_of_the_body(self) -> None:
        """The refusal names the caller's field. (rule G2)"""
        with pytest.raises(PasswordRefused) as refused:
            refuse_weak("short", "ann", field="password")
        assert refused.value.field == "password"

    @given(password=st.text(max_size=140), username=st.text(max_size=10))
    def test_any_text(self, password: str, username: str) -> None:
        """Whatever is sent is accepted or refused by name, and what is accepted can be hashed."""
        try:
            refuse_weak(password, username)
        except PasswordRefused:
            return
        assert 12 <= len(password) <= 128
        passwords = passwords_of()
        passwords.verify(password, passwords.hash(password))


class TestIssued:
    def test_form(self) -> None:
        """An issued password is four groups of letters and digits hard to confuse, and keeps the rules."""
        for number in range(200):
            password = issued_password(SeededEntropy(str(number).encode()))
            assert re.fullmatch(r"([2-9A-HJKMNP-TV-Z]{5}-){3}[2-9A-HJKMNP-TV-Z]{5}", password)
            refuse_weak(password, "ann.smith")

    def test_every_character_alike(self) -> None:
        """No character is likelier than another. (chi square, 29 degrees, below its 1e-6 limit)"""
        count = Counter[str]()
        for number in range(1500):
            count.update(issued_password(SeededEntropy(b"alike%d" % number)).replace("-", ""))
        expected = 1500 * 20 / 30
        assert len(count) == 30
        assert sum((seen - expected) ** 2 / expected for seen in count.values()) < 84.0

    def test_bytes_that_would_favour_some(self) -> None:
        """Bytes from 240 on would favour the first sixteen characters and are drawn again. (rule A4)"""
        assert issued_password(GivenEntropy(bytes([240, 255, 29]))) == "-".join(["ZZZZZ"] * 4)

    def test_never_twice(self) -> None:
        """Two people are issued two passwords."""
        entropy = SeededEntropy()
        assert len({issued_password(entropy) for _ in range(1000)}) == 1000


class TestLeaked:
    def test_none_of_them_becomes_a_password(self) -> None:
        """None of the 30,000 seen most in leaks is taken, be it bare, lengthened by digits and signs, or written twice. [USR-11]"""
        leaked = passwords._leaked()
        assert len(leaked) >= 30_000
        taken = []
        for word in leaked:
            # Of digits alone nothing is left to be known by.
            longer = [f"{word}20261122!", f"1234567890{word}"] if re.search(r"[a-z]", word) else []
            for made in (word, word * 2, *longer):
                with contextlib.suppress(PasswordRefused):
                    refuse_weak(made, "ann.smith")
                    taken.append(made)
        assert not taken
        refuse_weak(PASSWORD, "ann.smith")
