"""What the protocol says of safety unblindings: events that are exempt from them, and whether a site is shown that one was."""

from app.domain.studies import is_exempt
from tests.harness import House, expect
from tests.supply import S, Trial, trial

SAFETY = f"{S}/safety-unblindings"


def unblind(running: Trial, status: int, **said: object) -> dict[str, object]:
    body = {"subject_id": "01-0001", "reason": "SUSAR 2026-0113", **said}
    answer: dict[str, object] = expect(running.another("safety_officer").post(SAFETY, json=body, step_up=True), status)
    return answer


def test_an_exempt_event_is_warned_of_first(house: House) -> None:
    """In any spelling, before anything is opened; who insists is answered, and the event is in the restricted part. [UNB-04]"""
    running = trial(house, exempt_events=["Hot flush", "Amenorrhoea"])
    running.allocate("01-0001")
    assert expect(running.study_admin.get(S), 200)["exempt_events"] == ["Hot flush", "Amenorrhoea"]
    before = len(running.entries("safety_unblinding:create"))
    refused = unblind(running, 422, event="  HOT  flush ")
    assert refused["errors"][0]["field"] == "despite_exemption"  # type: ignore[index]  # a problem's list
    assert "treatment" not in str(refused)
    entry = running.entries("safety_unblinding:create")[-1]
    assert len(running.entries("safety_unblinding:create")) == before + 1
    assert "01-0001" not in str(entry)
    assert "flush" not in str(entry).casefold()
    assert unblind(running, 201, event="hot flush", despite_exemption=True)["treatment"]
    assert unblind(running, 201, event="Pulmonary embolism")["treatment"]
    assert unblind(running, 201)["treatment"]
    assert "flush" not in str(running.entries("safety_unblinding:create")).casefold()


def test_of_an_unknown_subject_nothing_is_said(house: House) -> None:
    """The subject comes first: an exempt event of nobody is a 404 like any other. [UNB-04, USR-21]"""
    running = trial(house, exempt_events=["Hot flush"])
    unblind(running, 404, subject_id="01-9999", event="Hot flush")


def test_spellings() -> None:
    """Case, spaces and compatibility forms do not make another event. [UNB-04]"""
    assert is_exempt("HOT\u00a0Flush", ["hot flush"])
    assert not is_exempt("flush", ["hot flush"])
    assert not is_exempt("hot flush", [])


def test_hidden_unless_the_protocol_says_so(house: House) -> None:
    """By default no allocation tells that its subject was unblinded for a report. [UNB-05, UNB-03]"""
    running = trial(house)
    running.allocate("01-0001")
    assert expect(running.study_admin.get(S), 200)["safety_unblinding_shown"] is False
    unblind(running, 201)
    read = running.investigator.get(f"{S}/subjects/01-0001/allocation")
    assert expect(read, 200)["flags"]["safety_unblinded_at"] is None


def test_shown_where_the_protocol_says_so(house: House) -> None:
    """That it happened, and when; not the treatment, nor another subject, and no more in the trail. [UNB-05]"""
    running = trial(house, safety_unblinding_shown=True)
    running.allocate("01-0001")
    running.allocate("01-0002")
    made = unblind(running, 201)
    shown = {}
    for subject in ("01-0001", "01-0002"):
        read = expect(running.investigator.get(f"{S}/subjects/{subject}/allocation"), 200)
        shown[subject] = read["flags"]["safety_unblinded_at"]
        assert read["flags"]["unblinded_at"] is None
        assert str(made["treatment"]) not in str(read)
        assert str(made["arm_code"]) not in str(read)
    assert shown == {"01-0001": made["revealed_at"], "01-0002": None}
    entry = running.entries("safety_unblinding:create")[-1]
    assert entry["target"] is None
    assert "01-0001" not in str(entry)


def test_what_cannot_be(house: House) -> None:
    """The same event twice, or text that is none: named, and nothing is registered. [UNB-04, G1]"""
    admin = house.person("study_admin", "X1")
    for events in (["Rash", "rash"], [""], ["a\nb"], ["x"] * 51):
        body = {
            "study_code": "X1",
            "title": "T",
            "blinding": "double",
            "planned_subjects": 4,
            "arms": [
                {"arm_code": code, "label": code, "treatment": f"Tablet {code}", "ratio": 1} for code in ("A1", "B1")
            ],
            "backup_contact": "Desk",
            "exempt_events": events,
        }
        refused = expect(admin.post("/v1/studies", json=body), 422)
        assert refused["errors"][0]["field"].startswith("exempt_events")
