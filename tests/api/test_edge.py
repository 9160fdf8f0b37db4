"""The outermost layer: request ids, plain faults, log lines that hold nothing of anybody's, and malformed HTTP on a real socket."""

import json
import socket
from collections.abc import Iterator
from typing import Final

import httpx
import pytest
from prometheus_client import REGISTRY

from app.services import studies
from tests.harness import STUDY, House, expect
from tests.reliability.service import Service

CANARY: Final = "Canary-7Qx9"
HOST: Final = b"Host: localhost\r\n"
JSON: Final = b"Content-Type: application/json\r\n"
SESSIONS: Final = b"POST /v1/sessions HTTP/1.1\r\n"

MALFORMED: Final = {
    "no host": b"GET /v1/me HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/me HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a host with a path": b"GET /v1/me HTTP/1.1\r\nHost: evil.example/v1/people?\r\n\r\n",
    "a host with a NUL": b"GET /v1/me HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
    "a host with bytes that are no text": b"GET /v1/me HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    "an absolute target": b"GET http://evil.example/v1/me HTTP/1.1\r\n" + HOST + b"\r\n",
    "an absolute target without path": b"GET http://evil.example HTTP/1.1\r\n" + HOST + b"\r\n",
    "an authority as target": b"GET evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a star as target": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an empty target": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "no slash": b"GET v1/me HTTP/1.1\r\n" + HOST + b"\r\n",
    "two slashes": b"GET //evil.example/v1/me HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in the target": b"GET /v1/\x00me HTTP/1.1\r\n" + HOST + b"\r\n",
    "an encoded NUL in the target": b"GET /v1/studies/%00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an encoded surrogate": b"GET /v1/studies/%ED%A0%80/trail HTTP/1.1\r\n" + HOST + b"\r\n",
    "raw bytes in the target": b"GET /v1/studies/\xed\xa0\x80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a broken escape": b"GET /v1/studies/%zz%4 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /v1/me#/v1/people HTTP/1.1\r\n" + HOST + b"\r\n",
    "a line feed in an escape": b"GET /v1/me%0d%0aX-Evil:%201 HTTP/1.1\r\n" + HOST + b"\r\n",
    "dots": b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "encoded dots": b"GET /docs/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target of 64 KiB": b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a query of 64 KiB": b"GET /v1/trail?cursor=" + b"a" * 65_536 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header of 64 KiB": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 65_536 + b"\r\n\r\n",
    "a token of 64 KiB": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"Authorization: Bearer " + b"a" * 65_536 + b"\r\n\r\n",
    "a header name of 64 KiB": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"a" * 65_536 + b": x\r\n\r\n",
    "2,000 headers": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: x\r\n" % n for n in range(2000)) + b"\r\n",
    "a header without colon": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"Authorization\r\n\r\n",
    "a header without name": b"GET /v1/me HTTP/1.1\r\n" + HOST + b": x\r\n\r\n",
    "a header with a space in its name": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"Content Length: 3\r\n\r\n",
    "a header with a NUL": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"Authorization: Bearer \x00\r\n\r\n",
    "a folded header": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"Authorization: Bearer\r\n x\r\n\r\n",
    "a header with raw bytes": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"Authorization: Bearer \xff\xfe\r\n\r\n",
    "a key with raw bytes": SESSIONS + HOST + JSON + b"Idempotency-Key: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths": SESSIONS + HOST + JSON + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "two lengths in one": SESSIONS + HOST + JSON + b"Content-Length: 2, 3\r\n\r\n{} ",
    "a length and chunks": SESSIONS + HOST + JSON + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": SESSIONS + HOST + JSON + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "a smuggled request": SESSIONS
    + HOST
    + JSON
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5c\r\nGET /v1/people HTTP/1.1\r\nHost: x\r\n\r\n0\r\n\r\n",
    "an unknown encoding": SESSIONS + HOST + JSON + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "an encoding with a tab": SESSIONS + HOST + JSON + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "an encoding twice": SESSIONS
    + HOST
    + JSON
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a negative length": SESSIONS + HOST + JSON + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": SESSIONS + HOST + JSON + b"Content-Length: +2\r\n\r\n{}",
    "a length that is no number": SESSIONS + HOST + JSON + b"Content-Length: two\r\n\r\n{}",
    "a hexadecimal length": SESSIONS + HOST + JSON + b"Content-Length: 0x2\r\n\r\n{}",
    "a length beyond all numbers": SESSIONS + HOST + JSON + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    "an empty length": SESSIONS + HOST + JSON + b"Content-Length: \r\n\r\n{}",
    "a chunk that is no number": SESSIONS + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk beyond all numbers": SESSIONS + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "a chunk with a long extension": SESSIONS
    + HOST
    + JSON
    + b"Transfer-Encoding: chunked\r\n\r\n2;"
    + b"a" * 65_536
    + b"\r\n{}\r\n0\r\n\r\n",
    "a body that is too large": SESSIONS + HOST + JSON + b"Content-Length: 1048577\r\n\r\n" + b" " * 1_048_577,
    "chunks that are too large": SESSIONS
    + HOST
    + JSON
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"10000\r\n" * 1
    + b" " * 65_536
    + b"\r\n"
    + (b"10000\r\n" + b" " * 65_536 + b"\r\n") * 16
    + b"0\r\n\r\n",
    "a body of a GET": b"GET /v1/me HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 1\r\n\r\n{",
    "HTTP/0.9": b"GET /v1/me\r\n\r\n",
    "HTTP/1.0": b"GET /v1/me HTTP/1.0\r\n\r\n",
    "HTTP/1.1 written as HTTP/1.x": b"GET /v1/me HTTP/1.x\r\n" + HOST + b"\r\n",
    "HTTP/9.9": b"GET /v1/me HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an upgrade": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "an upgrade to h2c": b"GET /v1/me HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "an unknown method": b"BREAK /v1/me HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method of 64 KiB": b"A" * 65_536 + b" /v1/me HTTP/1.1\r\n" + HOST + b"\r\n",
    "line feeds alone": b"GET /v1/me HTTP/1.1\nHost: x\n\n",
    "carriage returns alone": b"GET /v1/me HTTP/1.1\rHost: x\r\r",
    "empty lines before": b"\r\n\r\nGET /v1/me HTTP/1.1\r\n" + HOST + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "random bytes": bytes(range(256)) * 8,
    "NULs": b"\x00" * 1000,
    "an expectation": SESSIONS + HOST + JSON + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    "an unknown expectation": SESSIONS + HOST + JSON + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n{}",
    "many requests in a row": (b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n") * 50,
    "half a request line": b"GET /v1/m",
    "half a header": b"GET /v1/me HTTP/1.1\r\nHos",
    "half a body": SESSIONS + HOST + JSON + b'Content-Length: 100\r\n\r\n{"username": "',
    "half a chunk": SESSIONS + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n64\r\n{",
    "nothing": b"",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`snose serve`, as it is run."""
    folder = tmp_path_factory.mktemp("edge")
    with Service(folder, f"sqlite:///{folder / 'snose.sqlite'}", workers=1) as running:
        running.create()
        running.start()
        yield running


def exchange(service: Service, sent: bytes) -> bytes:
    """Return what comes back until the server closes, has nothing more to say, or we have hung up on half a request."""
    received = b""
    with socket.create_connection(("127.0.0.1", service.port), timeout=0.5) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received += part
        except (TimeoutError, ConnectionError):
            # It waits for the rest, or has shut the door already.
            pass
    return received


class TestRawSockets:
    def test_malformed_http_is_refused_and_the_service_goes_on(self, service: Service) -> None:
        """Host games, length against chunks, NUL, 64 KiB of anything, halves: no 5xx, and alive after each (T11, G1)."""
        with httpx.Client(base_url=service.base_url, trust_env=False) as client:
            for case, sent in MALFORMED.items():
                received = exchange(service, sent)
                if received:
                    assert received.startswith(b"HTTP/1.1 "), (case, received[:200])
                    statuses = [line[9:12] for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
                    assert all(b"100" <= status < b"500" for status in statuses), (case, received[:500])
                assert b"Traceback" not in received, case
                assert b"evil.example" not in received, case
                assert client.get("/livez").json() == {"status": "ok"}, case

    def test_one_length_and_chunks_never_make_two_requests(self, service: Service) -> None:
        """What an outer proxy takes for a body is not answered as a request of its own (T11)."""
        for case in ("a length and chunks", "chunks and a length", "a smuggled request", "two lengths"):
            received = exchange(service, MALFORMED[case])
            assert received.count(b"HTTP/1.1 ") <= 1, (case, received)
            assert received[9:12] in {b"", b"400", b"401", b"415", b"422"}, (case, received)

    def test_every_line_of_the_log_is_an_object_of_declared_fields(self, service: Service) -> None:
        """No path, no body, no header of a caller's stands in the log (BLD-13, E1)."""
        for case in ("half a body", "half a chunk", "NULs", "an upgrade"):
            exchange(service, MALFORMED[case])
        with httpx.Client(base_url=service.base_url, trust_env=False) as client:
            for _ in range(20):
                client.get("/livez")
            client.get(
                f"/v1/studies/{CANARY}/subjects/{CANARY}/allocation", headers={"Authorization": f"Bearer {CANARY}"}
            )
            client.post("/v1/sessions", json={"username": CANARY, "password": CANARY})
            client.get(f"/{CANARY}?{CANARY}")
            client.request(CANARY.replace("-", ""), "/v1/me")
        text = service.log.read_text()
        assert CANARY.lower() not in text.lower()
        assert CANARY.replace("-", "").lower() not in text.lower()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        asked = [line for line in lines if line["event"] == "request"]
        assert len(asked) > 20
        for line in asked:
            assert line.keys() == {"event", "level", "timestamp", "method", "route", "status", "ms", "request_id"}
            assert line["method"] in {"GET", "POST", "DELETE", "OTHER"}
        assert not [line for line in lines if line["event"] == "fault"], text
        # What is no object is uvicorn's own word about a request that it could not read, without any of it.
        others = {line.split(". ")[0].rstrip(".") for line in text.splitlines() if not line.startswith("{")}
        assert others <= {
            "WARNING:  Invalid HTTP request received",
            "WARNING:  Unsupported upgrade request",
            "WARNING:  No supported WebSocket library detected",
        }


class TestFaults:
    def test_a_fault_of_our_own_tells_nothing(
        self, house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A 500 is a plain problem; neither it nor the log holds what was in the fault or in the request (G2, BLD-13)."""
        house.register_study()
        admin = house.study_admins[STUDY]
        token = admin.token()

        def broken(*_: object) -> None:
            secret = f"{CANARY} in a variable"
            raise RuntimeError(secret)

        monkeypatch.setattr(studies, "read_study", broken)
        capsys.readouterr()
        path = f"/v1/studies/{STUDY}?q={CANARY}"
        response = house.client.get(path, headers={"Authorization": f"Bearer {token}", "X-Test": CANARY})
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["code"] == "internal_error"
        assert problem["request_id"] == response.headers["x-request-id"]
        output = capsys.readouterr()
        written = output.out + output.err
        for hidden in (CANARY, token, "Traceback", "in a variable"):
            assert hidden not in response.text
            assert hidden not in written
        assert "RuntimeError" not in response.text
        assert "kind=RuntimeError" in written
        assert "test_edge.py:" in written
        assert problem["request_id"] in written

    def test_the_next_request_is_served_as_ever(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fault leaves no transaction open and no lock held (G2)."""
        house.register_study()
        admin = house.study_admins[STUDY]

        def broken(*_: object) -> None:
            raise RuntimeError

        with monkeypatch.context() as patched:
            patched.setattr("app.storage.studies.add_site", broken)
            site = {"site_code": "09", "name": "Ninth", "timezone": "Asia/Shanghai"}
            headers = {"Authorization": f"Bearer {admin.token()}"}
            entries = len(house.bodies())
            response = house.client.post(f"/v1/studies/{STUDY}/sites", json=site, headers=headers)
            assert response.status_code == 500
            assert len(house.bodies()) == entries
        expect(admin.post(f"/v1/studies/{STUDY}/sites", json=site), 201)


class TestEveryAnswer:
    def test_the_request_id_is_the_servers_own(self, house: House) -> None:
        """Random, in header, log and entry, whatever the caller sends (E3)."""
        ids = set()
        for path in ("/livez", "/v1/me", "/nothing", "/openapi.json"):
            response = house.client.get(path, headers={"X-Request-Id": CANARY})
            given = response.headers["x-request-id"]
            assert len(bytes.fromhex(given)) == 16
            ids.add(given)
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["referrer-policy"] == "no-referrer"
            assert response.headers["cross-origin-resource-policy"] == "same-origin"
            assert "server" not in response.headers
            assert "access-control-allow-origin" not in response.headers
        assert len(ids) == 4

    def test_metrics_name_the_route_and_nothing_in_it(self, house: House) -> None:
        """No label tells a subject, a kit, a study or a made-up path or method (BLD-13)."""
        for path in (f"/v1/studies/{CANARY}/subjects/{CANARY}/allocation", f"/{CANARY}"):
            house.client.get(path)
        house.client.request("CANARY", "/v1/me")
        labels = [
            value
            for metric in REGISTRY.collect()
            if metric.name.startswith("snose_")
            for sample in metric.samples
            for value in sample.labels.values()
        ]
        assert "/v1/studies/{study}/subjects/{subject}/allocation" in labels
        assert not any("canary" in value.lower() for value in labels)
