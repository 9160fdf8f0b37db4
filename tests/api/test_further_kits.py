"""Kits for a subject whose code was broken, as the protocol of the study says (EUB-14)."""

import json
from typing import Final

import pytest

from app.services import kits
from tests.harness import STUDY, House, expect
from tests.running_study import TREATMENTS, RunningStudy, S, running_study

REPLACEMENT: Final = {"reason_code": "damaged", "reason": "The vial leaks."}


def break_codes(study: RunningStudy) -> set[str]:
    """Break the codes of subjects until there is one of each arm; return the arms."""
    arms: set[str] = set()
    while len(arms) < len(TREATMENTS):
        body = {"subject_id": study.new_subject()["subject_id"], "reason_code": "overdose"}
        arms.add(expect(study.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)["arm_code"])
    return arms


def test_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a kit for a visit nor a replacement, in the same words for every arm; others go on. [EUB-14]"""
    study = running_study(house, subjects=1, further_kits_after_break="refused")
    investigator, pharmacist = study.investigator, study.person("pharmacist")
    assert expect(investigator.get(S), 200)["further_kits_after_break"] == "refused"
    unblinded = study.new_subject()
    before = expect(investigator.post(f"{S}/subjects/01-0002/kits", json={"visit": "V1"}), 201)
    break_codes(study)
    expect(
        investigator.post(f"{S}/code-breaks", json={"subject_id": "01-0002", "reason_code": "overdose"}, step_up=True),
        201,
    )
    said = set()
    for allocation in study.allocations[1:]:
        path = f"{S}/subjects/{allocation['subject_id']}/kits"
        refusals = (
            investigator.post(path, json={"visit": "V2"}),
            pharmacist.post(f"{S}/kits/{allocation['kit_code']}/replacement", json=REPLACEMENT),
        )
        said |= {json.dumps({**expect(one, 409), "request_id": ""}) for one in refusals}
        entry = house.trail(STUDY, last=1)[0]
        assert (entry["outcome"], entry["after"]["code"]) == ("refused", "illegal_transition")
    assert len(said) == 1
    assert not any(word in said.copy().pop() for pair in TREATMENTS.items() for word in pair)
    # What was given stays, the same request again is the same answer, and the kit may be dispensed.
    assert expect(investigator.post(f"{S}/subjects/01-0002/kits", json={"visit": "V1"}), 200) == before
    scanned = {"subject_id": "01-0002", "scanned_code": unblinded["kit_code"]}
    expect(pharmacist.post(f"{S}/kits/{unblinded['kit_code']}/dispensation", json=scanned), 200)
    expect(investigator.post(f"{S}/subjects/01-0001/kits", json={"visit": "V2"}), 201)
    # Negative control: a build that does not ask the protocol gives one.
    monkeypatch.setattr(kits, "_require_protocol", lambda _act, _key: None)
    expect(investigator.post(f"{S}/subjects/01-0002/kits", json={"visit": "V2"}), 201)


def test_allowed(house: House) -> None:
    """Unless the protocol says otherwise, a code break withdraws nobody. [EUB-14]"""
    study = running_study(house, subjects=0)
    assert expect(study.investigator.get(S), 200)["further_kits_after_break"] == "allowed"
    break_codes(study)
    subject = study.allocations[0]["subject_id"]
    expect(study.investigator.post(f"{S}/subjects/{subject}/kits", json={"visit": "V2"}), 201)
    bad = {"study_code": "X", "further_kits_after_break": "perhaps"}
    expect(study.study_admin.post("/v1/studies", json=bad), 422)
