"""What must not stand in the service's code at all, looked for in every module of it."""

import ast
import hmac
import re
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import pytest
import uvicorn

from app.errors import WrongCredentials, WrongOneTimeCode
from app.identity.codes import accepted_step
from app.identity.tokens import client_secret_digest, new_client_secret, verify_client_secret
from app.services.context import SystemEntropy
from app.services.final_package import harmless
from tests.harness import House, SeededEntropy
from tests.test_packaging import ROOT

RUNNING: Final = {"eval", "exec", "compile", "__import__", "execfile"}
READING_OBJECTS: Final = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "jsonpickle",
    "yaml",
    "xml",
    "lxml",
    "ldap3",
    "memcache",
}
HASHES: Final = {"sha256", "sha384", "sha512", "shake_256", "file_digest", "new"}
WEAK: Final = {"md5", "sha1", "MD5", "SHA1", "ECB", "CBC", "PKCS1v15", "ARC4", "TripleDES", "Blowfish", "Fernet"}
WORDS_OF_TEMPLATES: Final = {"documentation.html", "documentation.css"}
NESTED: Final = {
    r"[\w.\-]+(?: [\w.\-]+)*",
    r"[A-Za-z0-9_.-]{1,64}(?:/[A-Za-z0-9_.-]{1,64})*",
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+",
}
"""Repetitions within a repetition, each of which begins with a sign that the inner one does not take: one way to read a text."""


@cache
def modules() -> tuple[tuple[str, tuple[ast.AST, ...]], ...]:
    """Return every module of the service with all that stands in it."""
    return tuple(
        (str(path.relative_to(ROOT)), tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
        for path in sorted((ROOT / "app").rglob("*.py"))
    )


@cache
def calls() -> tuple[tuple[str, ast.Call, str], ...]:
    """Return every call with the last word of what is called."""
    return tuple(
        (f"{name}:{node.lineno}", node, getattr(node.func, "attr", getattr(node.func, "id", "")))
        for name, nodes in modules()
        for node in nodes
        if isinstance(node, ast.Call)
    )


class TestInterpreters:
    def test_no_text_becomes_code(self) -> None:
        """Nothing is evaluated, and no object is read that a text could make up: bodies are JSON or CSV. [G1]"""
        run = [at for at, call, called in calls() if called in RUNNING and isinstance(call.func, ast.Name)]
        assert run == []
        for name, nodes in modules():
            for node in nodes:
                imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {one.partition(".")[0] for one in imported} & READING_OBJECTS, name

    def test_no_text_becomes_a_statement(self) -> None:
        """SQL is built of columns and parameters; what is written out is a constant, or holds a number or name of ours. [G1]"""
        written = [
            (at, call.args[0])
            for at, call, called in calls()
            if called in {"text", "exec_driver_sql", "DDL"} and call.args and at.startswith("app/storage")
        ]
        assert len(written) > 5
        made = {at.partition(":")[0] for at, word in written if isinstance(word, ast.JoinedStr | ast.BinOp)}
        # A limit in milliseconds, as a whole number.
        assert made <= {
            "app/storage/database.py",
            "app/storage/server.py",
            "app/storage/triggers.py",
            "app/storage/migrate.py",
        }
        for _, word in written:
            assert not (isinstance(word, ast.Call) and getattr(word.func, "attr", "") in {"format", "join", "replace"})

    def test_no_text_becomes_a_template_or_a_format(self) -> None:
        """Pages are templates of the package, escaped; formats are constants, so that nobody's text is looked into. [G1]"""
        for at, call, called in calls():
            if called == "get_template":
                assert isinstance(call.args[0], ast.Constant), at
                assert call.args[0].value in WORDS_OF_TEMPLATES, at
            if called in {"from_string", "Template", "format_map"}:
                raise AssertionError(at)
            if called == "format" and isinstance(call.func, ast.Attribute) and "msgspec" not in ast.dump(call.func):
                is_named = isinstance(call.func.value, ast.Name) and call.func.value.id.isupper()
                assert is_named or isinstance(call.func.value, ast.Constant), at

    def test_no_csv_runs_in_a_spreadsheet(self) -> None:
        """Every cell of every CSV goes by one function, whoever wrote what is in it; headers are constants. [T23]"""
        for sign in "=+-@\t\r":  # NUL is in no text that is let in
            assert harmless(f"{sign}1+1")[0] == "'"
        assert harmless("01-0001") == "01-0001"
        written = [(at, call.args[0]) for at, call, called in calls() if called in {"writerow", "writerows"}]
        assert len(written) > 3
        for at, row in written:
            text = ast.unparse(row)
            is_header = re.match(r"\[?\*?(_?[A-Z]+_?)+\b", text) is not None
            assert is_header or re.match(r"map\(_?harmless,|\(?_cell\(", text), (at, text)

    def test_no_program_is_started_by_a_text(self) -> None:
        """Programs are called by a list of words, never by a shell."""
        for at, call, called in calls():
            assert called not in {"system", "popen", "spawnl", "getoutput"}, at
            assert not [word for word in call.keywords if word.arg == "shell"], at


class TestExpressions:
    def test_are_constants_without_two_ways_to_fail(self) -> None:
        """No regular expression is made of what was sent, and none repeats a repetition: no text makes one run for ever. [G1]"""
        found = []
        for at, call, called in calls():
            if called in {"compile", "match", "fullmatch", "search", "sub", "split"} and (
                isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "re"
            ):
                is_named = isinstance(call.args[0], ast.Name) and call.args[0].id.isupper()
                assert is_named or isinstance(call.args[0], ast.Constant | ast.JoinedStr), at
                if isinstance(call.args[0], ast.Constant):
                    found.append(call.args[0].value)
        assert len(found) > 20
        texts = [one.decode("latin-1") if isinstance(one, bytes) else str(one) for one in found]
        assert {one for one in texts if nests(one)} <= NESTED
        assert nests(r"(a+)+$")

    def test_the_nested_ones_end(self) -> None:
        """On the texts that are worst for them: longer than any that is let in."""
        for pattern in NESTED:
            for evil in ("a" * 5_000 + "!", "a " * 2_500 + "!", "a/" * 2_500 + "!", "." * 5_000 + " "):
                re.fullmatch(pattern, evil)


def nests(pattern: str) -> bool:
    """Whether a repetition without end stands within another one."""
    return re.search(r"[+*}]\)(?:[+*]|\{\d*,\d*\})", pattern) is not None


class TestCiphers:
    def test_no_weak_one_is_named(self) -> None:
        """Hashes are of the SHA-2 family or SHAKE-256, ciphers AES-GCM; no block mode, padding or hash that is broken. [F1]"""
        for name, nodes in modules():
            for node in nodes:
                if isinstance(node, ast.Attribute | ast.Name):
                    word = node.attr if isinstance(node, ast.Attribute) else node.id
                    assert word not in WEAK, (name, node.lineno)
                if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "hashlib":
                    assert node.attr in HASHES, (name, node.lineno)

    def test_secrets_are_compared_in_one_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Codes and client secrets go through the comparison that does not stop at the first difference, right or wrong. [T30]"""
        asked = []
        real: Callable[[Any, Any], bool] = hmac.compare_digest

        def counted(one: Any, other: Any) -> bool:  # noqa: ANN401  # as the library's own
            asked.append(len(one))
            return real(one, other)

        monkeypatch.setattr(hmac, "compare_digest", counted)
        secret = new_client_secret(SeededEntropy())
        verify_client_secret(secret, client_secret_digest(secret))
        for stored in (None, bytes(32)):
            with pytest.raises(WrongCredentials):
                verify_client_secret(secret, stored)
        assert asked == [32, 32, 32]
        now = datetime(2026, 11, 22, tzinfo=UTC)
        with pytest.raises(WrongOneTimeCode):
            accepted_step("JBSWY3DPEHPK3PXP" * 2, "000000", now, None)
        assert asked[3:] == [6, 6]

    def test_chance_is_enough_for_many_at_once(self) -> None:
        """Eight threads draw from the operating system at once: nobody waits, fails, or gets what another one got. [rule A4]"""
        source = SystemEntropy()
        with ThreadPoolExecutor(8) as pool:
            drawn = list(pool.map(lambda _: source.draw("token", 32), range(20_000)))
        assert len(set(drawn)) == 20_000
        assert {len(one) for one in drawn} == {32}

    def test_no_tag_or_code_is_compared_otherwise(self) -> None:
        """In the modules of secrets nothing named a tag, MAC, code or secret stands beside `==`."""
        for name, nodes in modules():
            if not name.startswith(("app/sealing", "app/identity")):
                continue
            for node in nodes:
                if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                    words = {getattr(part, "attr", getattr(part, "id", "")) for part in (node.left, *node.comparators)}
                    assert not words & {"tag", "mac", "code", "otp", "secret", "digest", "stored_digest", "key"}, (
                        name,
                        node.lineno,
                    )


class TestWire:
    def test_whose_address_counts(self) -> None:
        """Only a proxy on this machine is believed about its client, and of several names the one that it added itself. [E1]"""
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  # ASGI's own
            seen.append(scope["client"][0])

        config = uvicorn.Config(app, lifespan="off")
        config.load()
        for peer, told, counts in (
            ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
            ("127.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ):
            scope = {
                "type": "http",
                "client": (peer, 1),
                "headers": [(b"x-forwarded-for", told.encode())],
                "scheme": "http",
            }
            call: Any = config.loaded_app
            run = call(scope, None, None)
            with pytest.raises(StopIteration):
                run.send(None)
            assert seen.pop() == counts
        serving = (ROOT / "app" / "cli" / "serving.py").read_text(encoding="utf-8")
        assert "forwarded_allow_ips" not in serving

    def test_tls_to_others_is_of_today(self) -> None:
        """Connections that leave have TLS 1.2 at least and prove whose certificate it is; nowhere is that switched off."""
        context = ssl.create_default_context()
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        for at, _, called in calls():
            assert called not in {"_create_unverified_context", "SSLContext"}, at
        for name, nodes in modules():
            for node in nodes:
                if isinstance(node, ast.Attribute):
                    assert node.attr not in {"CERT_NONE", "CERT_OPTIONAL", "check_hostname", "minimum_version"}, name

    def test_no_redirect_is_followed(self) -> None:
        """No client of the service follows one: `httpx` does not by itself, and the others know none."""
        for at, call, _ in calls():
            assert not [word for word in call.keywords if word.arg == "follow_redirects"], at
            assert "urlopen" not in ast.dump(call.func), at

    def test_each_connection_has_an_end(self) -> None:
        """Whoever opens a connection says how long it may take."""
        opening = {"HTTPConnection", "HTTPSConnection", "create_connection", "Client"}
        for at, call, called in calls():
            if called in opening and not at.startswith(("app/cli", "app/witness")):
                is_limited = len(call.args) > 1 or any(word.arg == "timeout" for word in call.keywords)
                assert is_limited, at


class TestLog:
    def test_nobody_writes_a_line_of_it(self, house: House, capfd: pytest.CaptureFixture[str]) -> None:
        """Line feeds and escapes in whatever is sent make no line, and no field, of the log. [E1, BLD-13]"""
        house.register_study()
        token = house.admin.token()
        capfd.readouterr()
        evil = 'x\n{"event":"forged"}\r\n\x1b[2Jforged'
        for path, body in (
            ("/v1/sessions", {"username": evil, "password": evil}),
            ("/v1/people", {"username": "a.b", "display_name": evil, "email": evil}),
        ):
            assert house.send("POST", path, token=token, json=body).status_code in {401, 422}
        house.client.get("/v1/studies/x%0a%7b%22event%22:%22forged%22%7d/sites", headers={"X-Request-Id": "forged"})
        written = "".join(capfd.readouterr())
        assert "forged" not in written
        assert "\x1b[2J" not in written

    def test_nothing_is_put_into_a_message(self) -> None:
        """An event is a constant word, and its fields are named: no f-string, no percent sign. [E1]"""
        events = [
            (at, call.args)
            for at, call, called in calls()
            if called in {"info", "warning", "error", "debug", "exception", "critical"}
            and getattr(getattr(call.func, "value", None), "id", "") in {"_log", "logging", "logger"}
        ]
        assert len(events) > 15
        for at, args in events:
            assert len(args) == 1, at
            assert isinstance(args[0], ast.Constant), at
