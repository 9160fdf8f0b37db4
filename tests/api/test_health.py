"""Health checks: anybody may ask, and hears no more than ok or not (rule F2)."""

from pathlib import Path

from tests.harness import STUDY, House, expect


def test_a_running_service_is_alive_and_ready(house: House) -> None:
    """No credentials, no detail, nothing entered (api.md, E1)."""
    entries = house.bodies()
    for path in ("/livez", "/readyz"):
        response = house.client.get(path)
        assert expect(response, 200) == {"status": "ok"}
        assert response.headers["cache-control"] == "no-store"
    assert house.bodies() == entries


def test_a_sink_that_fails_makes_it_not_ready_and_still_alive(house: House) -> None:
    """`/readyz` fails at once when no checkpoint can be written, without saying why (F2, custody.md)."""
    sink = house.settings.checkpoint_file
    kept = sink.read_bytes()
    sink.unlink()
    sink.mkdir()
    try:
        issued = house.admin.post("/v1/people", json={"username": "m.rossi", "display_name": "M", "email": "m@x.org"})
        assert issued.status_code == 503
        response = house.client.get("/readyz")
        assert expect(response, 503) == {"status": "not ready"}
        assert expect(house.client.get("/livez"), 200) == {"status": "ok"}
    finally:
        sink.rmdir()
        sink.write_bytes(kept)


def test_without_its_key_the_service_is_sealed_but_for_its_health(house: House, tmp_path: Path) -> None:
    """Every door is shut with one plain problem; health says alive and not ready (F2)."""
    missing = tmp_path / "no-such-key"
    house.restart(key_file=missing)
    assert expect(house.client.get("/livez"), 200) == {"status": "ok"}
    assert expect(house.client.get("/readyz"), 503) == {"status": "not ready"}
    for method, path in (
        ("GET", f"/v1/studies/{STUDY}"),
        ("POST", "/v1/sessions"),
        ("POST", f"/v1/studies/{STUDY}/code-breaks"),
        ("GET", "/v1/me"),
    ):
        response = house.client.request(method, path, json={} if method == "POST" else None)
        problem = expect(response, 503)
        breaks = path.endswith("code-breaks")
        assert problem["code"] == ("reveal_unavailable" if breaks else "sealed")
        assert problem.get("backup_contact") == (house.settings.backup_contact if breaks else None)
        assert str(missing) not in response.text
