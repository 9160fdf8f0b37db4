"""Where the operator asks for two factors, a password alone opens its owner's account and the way to a second one (USR-09)."""

from pathlib import Path

from app.domain.words import Mode
from app.services import safety
from app.surroundings import surroundings
from tests.harness import STUDY, House, expect
from tests.supply import S, trial

BREAK = {"subject_id": "01-0001", "reason_code": "overdose"}


def challenged(house: House, method: str, path: str, token: str) -> bool:
    answer = house.send(method, path, token=token)
    told = answer.headers.get("www-authenticate", "")
    return answer.status_code == 401 and "insufficient_user_authentication" in told


def test_a_password_opens_nothing_of_a_study(house: House) -> None:
    """Reading, too, waits for a second factor; it holds for the session, however old it is by then. [USR-09]"""
    running = trial(house)
    running.allocate("01-0001")
    house.restart(second_factor_required=True)
    doctor = running.investigator
    for path in (S, f"{S}/sites", f"{S}/allocations", f"{S}/subjects/01-0001/allocation", f"{S}/code-breaks"):
        assert challenged(house, "GET", path, doctor.token()), path
    assert challenged(house, "GET", "/v1/people", house.admin.token())
    # Who has no right hears that first, and who has no role that there is nothing (rule G2).
    expect(doctor.get(f"{S}/safety-unblindings"), 403)
    expect(doctor.get("/v1/studies/OTHER"), 404)
    for path in ("/v1/me", "/v1/me/sessions"):
        expect(doctor.get(path), 200)
    proven = doctor.elevated_token()
    house.clock.advance(minutes=10)
    expect(house.send("GET", f"{S}/allocations", token=proven), 200)
    assert challenged(house, "GET", f"{S}/allocations", doctor.token())
    assert [entry for entry in house.trail(STUDY) if entry["outcome"] == "denied"]


def test_a_code_break_waits_for_nothing_more(house: House) -> None:
    """The same steps and answers as without the setting; its narrative follows in the same session. [USR-09, EUB-02, EUB-03]"""
    running = trial(house)
    running.allocate("01-0001")
    house.restart(second_factor_required=True)
    doctor = running.investigator
    assert challenged(house, "POST", f"{S}/code-breaks", doctor.token())
    token = doctor.elevated_token()
    broken = expect(house.send("POST", f"{S}/code-breaks", token=token, json=BREAK), 201)
    assert broken["treatment"]
    told = f"{S}/code-breaks/{broken['code_break_id']}/narrative"
    expect(house.send("POST", told, token=token, json={"narrative": "Overdose; known at once."}), 201)


def test_a_machine_is_not_asked(house: House) -> None:
    """It has no second factor, signs nothing and unblinds nobody. [USR-09, USR-15]"""
    running = trial(house)
    machine = house.machine()
    house.restart(second_factor_required=True)
    expect(machine.get(f"{S}/allocations"), 200)
    assert challenged(house, "GET", f"{S}/allocations", running.study_admin.token())


def test_the_operator_is_told(house: House, tmp_path: Path) -> None:
    """In live mode `snose doctor` names what a password alone opens, and how to mend it; a test deployment may be so. [USR-09]"""
    for asked, mode, named in ((False, Mode.LIVE, 1), (True, Mode.LIVE, 0), (False, Mode.TEST, 0)):
        around = surroundings(house.settings.model_copy(update={"second_factor_required": asked}))
        try:
            found = safety.of_sign_in(around, mode)
        finally:
            around.database.close()
        assert len(found) == named
        assert all("SNOSE_SECOND_FACTOR_REQUIRED" in one.mend for one in found)
