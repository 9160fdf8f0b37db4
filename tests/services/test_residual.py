"""The residual-inference report against the truth of the whole list, on both databases (BLD-15, failures 12)."""

import json
from typing import Any

import pytest

from tests.harness import STUDY, House, expect
from tests.running_study import TREATMENTS, S, execute, running_study, tampering


def report(house: House, caller: Any) -> list[dict[str, Any]]:  # noqa: ANN401  # a caller of the harness
    response = caller.get(f"{S}/residual-inference")
    items: list[dict[str, Any]] = expect(response, 200)["items"]
    assert response.headers["Cache-Control"] == "no-store"
    assert house.trail(STUDY)[-1]["action"] == "residual_inference:read"
    assert not any(word in response.text for pair in TREATMENTS.items() for word in pair)
    assert "01-000" not in response.text
    return items


def test_blocks_in_which_a_treatment_became_known(house: House) -> None:
    """With every subject of the list revealed one after the other, each block's figures are those of its arms. [BLD-15, B10]"""
    running = running_study(house, subjects=12, length=12)
    statistician = running.people["statistician"]
    assert report(house, statistician) == []
    body: dict[str, Any] = {"reason_code": "overdose"}
    arms = []
    for number in range(1, 11):
        body["subject_id"] = f"01-{number:04}"
        arms.append(expect(running.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)["arm_code"])
    physician = running.person("treating_physician")
    asked = {"subject_id": "01-0011", "physician": physician.username, "reason_code": "overdose"}
    named = expect(running.investigator.post(f"{S}/third-party-unblindings", json=asked, step_up=True), 201)
    before = report(house, statistician)
    path = f"{S}/third-party-unblindings/{named['third_party_unblinding_id']}/opening"
    expect(physician.post(path, step_up=True), 201)
    accident = {
        "subject_id": "01-0012",
        "happened_at": house.clock.now.isoformat(),
        "how_learnt": "other",
        "who_learnt": ["subject"],
        "narrative": "A guess that was right",
    }
    expect(running.investigator.post(f"{S}/accidental-unblindings", json=accident), 201)
    items = report(house, statistician)
    assert [item["block"] for item in items] == sorted(item["block"] for item in items)
    assert sum(item["revealed"] for item in before) == 10
    assert sum(item["revealed"] for item in items) == sum(item["block_size"] for item in items) == 12
    assert all(item["hidden"] == 0 and item["chance_before"] == 0.5 for item in items)
    position = 0
    for item in items:
        inside = arms[position : position + item["block_size"]]
        position += item["block_size"]
        if len(inside) == item["block_size"]:
            assert {inside.count(arm) for arm in TREATMENTS} == {item["block_size"] // 2}
    for role in ("list_approver", "investigator", "safety_officer"):
        expect(running.person(role).get(f"{S}/residual-inference"), 403)


@pytest.mark.parametrize("changed", ["moved", "gone"])
def test_slot_that_is_not_what_was_committed_to(house: House, changed: str) -> None:
    """A slot that was changed or taken away gives no report. [SEQ-11, CUS-10]"""
    running = running_study(house, subjects=2, length=12)
    body = {"subject_id": "01-0001", "reason_code": "overdose"}
    expect(running.investigator.post(f"{S}/code-breaks", json=body, step_up=True), 201)
    statement = {
        "moved": "UPDATE slot SET position = position + 1000 WHERE position IN (0)",
        "gone": "UPDATE slot SET randomization_number = 'XXXXXX' WHERE position = 0",
    }[changed]
    with tampering(running, "slot"):
        execute(running, statement)
    problem = expect(running.people["statistician"].get(f"{S}/residual-inference"), 503)
    assert problem["code"] == "integrity_failure"
    assert json.dumps(house.trail(STUDY)[-1]["outcome"]) == '"integrity"'
