"""The examples of the documentation, told as one story: one study, one site, one subject, one kit.

A field says its example itself where it means something of its own; all others of a name share the one that stands here, so that
a kit code of one answer is the kit code of the next request. The tests hold every example to its schema.
"""

from collections.abc import Mapping
from typing import Any, Final

_ID: Final = "3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"
_HASH: Final = "9f2c6f0a1e5d4b7c8a93e6d2f1b0c4a79f2c6f0a1e5d4b7c8a93e6d2f1b0c4a7"
_AT: Final = "2026-11-22T09:14:03+00:00"
_CHECKPOINT: Final = (
    f"snose/{_ID}/NCT03033277\n1842\nn2xvCh5de3vIepPmL8a5GQd2pXBvEoFqvKk0cXW4bzs=\n\n"
    f"— snose/{_ID} kZ3pQ1mX0b9rJwYc7uVt5sRqPoNmLkJiHgFeDcBa9876543210zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLK\n"
)

_STORY: Final[Mapping[str, Any]] = {
    # the study
    "study_code": "NCT03033277",
    "title": "HUC-MSC transplantation in women with primary ovarian insufficiency",
    "blinding": "double",
    "mode": "test",
    "planned_subjects": 320,
    "stock_floor": 3,
    "StudyRequest.arms": [
        {
            "arm_code": "CONTROL",
            "label": "Control group",
            "treatment": "Hormone replacement therapy + placebo",
            "ratio": 1,
        },
        {
            "arm_code": "HUCMSC",
            "label": "Experimental group",
            "treatment": "Hormone replacement therapy + HUC-MSCs",
            "ratio": 1,
        },
    ],
    "StudyRequest.factors": [],
    "StudyRead.arms": [
        {
            "arm_code": "CONTROL",
            "label": "Control group",
            "treatment": "Hormone replacement therapy + placebo",
            "ratio": 1,
        },
        {
            "arm_code": "HUCMSC",
            "label": "Experimental group",
            "treatment": "Hormone replacement therapy + HUC-MSCs",
            "ratio": 1,
        },
    ],
    "StudyRead.factors": [],
    "StudyRead.status": "open",
    "StatusRequest.status": "open",
    "StatusRequest.reason": "All sites are ready.",
    "StudyRequest.stratify_by_site": False,
    "StudyRead.stratify_by_site": False,
    "arm_code": "HUCMSC",
    "treatment": "Hormone replacement therapy + HUC-MSCs",
    "backup_contact": "Pharmacy on call, +86 10 5550 0100",
    "site_code": "01",
    "name": "Peking University Third Hospital",
    "timezone": "Asia/Shanghai",
    # people and times
    "marked_by": "m.rossi",
    "flagged_by": "m.rossi",
    "broken_by": "m.rossi",
    "unblinded_by": "k.sato",
    "FinalUnblindingRead.requested_by": "s.ito",
    "CodeBreakRequest.requested_by": "Dr on call, ward 3",
    "reported_user": "nurse.li",
    "role": "investigator",
    # allocation lists
    "ScheduleRequest.lengths": None,
    "ScheduleRequest.reason": None,
    "RejectionRequest.reason": "The planned length was wrong.",
    "extends": None,
    "commitment": _HASH,
    # kits
    "consignment_code": "C1",
    "kit_code": "K7XQ4M2PF",
    "scanned_code": "K7XQ4M2PF",
    "replaces": None,
    "kit_codes": ["K7XQ4M2PF"],
    "current_kit_codes": ["K7XQ4M2PF"],
    "lot": "L2607",
    "expires_on": "2027-06-30",
    "kit_count": 40,
    "BatchField.count": 20,
    "ConsignmentRequest.kits": [
        {"arm_code": "CONTROL", "lot": "L2606", "expires_on": "2027-06-30", "count": 20},
        {"arm_code": "HUCMSC", "lot": "L2607", "expires_on": "2027-06-30", "count": 20},
    ],
    "recipient_key": None,
    "SheetsRequest.recipient_key": "j0DFrbaPJWJK5bIU6nZ6bslNgp09e14a0bpvPiE4KF8=",
    "ReceiptRequest.received": ["K7XQ4M2PF"],
    "ReceiptRequest.missing": [],
    "ConsignmentReceiptRead.received": 1,
    "ConsignmentReceiptRead.missing": 0,
    "outstanding": 39,
    "put_aside": [],
    "visit": "V2",
    "DispatchRead.status": "dispatched",
    "ConsignmentReceiptRead.status": "dispatched",
    "StockItemRead.status": "in_stock",
    "SubjectKitRead.status": "assigned",
    "AssignedKitRead.status": "assigned",
    "KitStateRead.status": "quarantined",
    "SignedKitStateRead.status": "in_stock",
    "DispensedKitRead.status": "dispensed",
    "ReplacementRequest.reason": "The vial leaks.",
    "ReasonRequest.reason": "The cold chain was broken for two hours.",
    # subjects
    "subject_id": "01-0007",
    "duplicate_of": "01-0003",
    "DuplicateLinkRequest.reason": "One person, screened twice.",
    "strata_used": {},
    "strata_corrected": None,
    "category": "ineligible",
    "ErrorMarkRequest.reason": "An exclusion criterion was seen after randomization.",
    "StrataCorrectionRequest.reason": "The age group was read from the wrong line.",
    "FlagsRead.unblinded_at": None,
    "FlagsRead.error_mark": None,
    "FlagsRead.duplicate_of": None,
    "FlagsRead.accidentally_unblinded_at": None,
    "FlagsRead.safety_unblinded_at": None,
    "FlagRead.kind": "error_mark",
    # code breaks
    "code_break_id": _ID,
    "safety_unblinding_id": _ID,
    "requested_by": "m.rossi",
    "CodeBreakRequest.kit_code": None,
    "CodeBreakRecordRead.kit_code": None,
    "SafetyRecordRead.status": "authorised",
    "CodeBreakRecordRead.reason_code": "serious_adverse_event",
    "FinalUnblindingRead.request_id": _ID,
    "PackingListRequestRead.request_id": _ID,
    # the trail
    "request_id": "5b0f6a5d0d1e4d7f8a7c2b9e3f4a1c6d",
    "leaf_hash": _HASH,
    "log_index": 1841,
    "index": 1841,
    "segment": 1,
    "size": 1842,
    "from_size": 1200,
    "to_size": 1842,
    "root": _HASH,
    "from_root": _HASH,
    "to_root": _HASH,
    "InclusionProofRead.proof": [_HASH],
    "ConsistencyProofRead.proof": [_HASH],
    "checkpoint": _CHECKPOINT,
    "AuditEntryRead.target": {"subject_id": "01-0007"},
    "DisclosureRead.target": {"subject_id": "01-0007"},
    "not_shown": [],
    "AuditEntryRead.before": None,
    "AuditEntryRead.after": {"randomization_number": "R4K7QK", "kit_code": "K7XQ4M2PF"},
    "RestrictedRead.part": {"reason": "An exclusion criterion was seen after randomization."},
    "statement": "The database was restored from the back-up of 03:00 after a disk failure; nothing was acknowledged since.",
    "origin": f"snose/{_ID}/NCT03033277",
    "SuspectedLog.kind": "rollback",
    "grant_id": _ID,
    "session_id": _ID,
    "training_id": _ID,
    "content_hash": _HASH,
    "next_cursor": None,
}

_TEXTS: Final[Mapping[tuple[str, str], str]] = {
    ("read_checkpoint", "text/plain"): _CHECKPOINT,
    ("export_trail", "application/x-ndjson"): (
        f'{{"checkpoint":"...","handovers":[],"keys":["..."],"origin":"snose/{_ID}/NCT03033277","size":1842,'
        '"snose_trail_export":1}\n'
        f'{{"body":{{"action":"study:register","index":0,"v":1}},"leaf_hash":"{_HASH}"}}\n'
    ),
}
"""Answers that are no JSON."""


def text_example(operation: str, media_type: str) -> str | None:
    """Return the example of an answer that is no JSON; None for sealed boxes and archives, which are no text."""
    return _TEXTS.get((operation, media_type))


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any], owner: str = "") -> Any:  # noqa: ANN401  # whatever JSON holds
    """Return an example of a schema: its own, or one put together from its parts; raises ``KeyError`` where there is none."""
    own = [schema[word] for word in ("example", "const") if word in schema]
    own += [values[0] for word in ("examples", "enum") if (values := schema.get(word))]
    return own[0] if own else _composed(schema, schemas, owner)


def _composed(schema: Mapping[str, Any], schemas: Mapping[str, Any], owner: str) -> Any:  # noqa: ANN401  # whatever JSON holds
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[1]
        return example_of(schemas[name], schemas, name)
    if "properties" in schema:
        return {name: _member(name, part, schemas, owner) for name, part in schema["properties"].items()}
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    if kinds:
        return example_of(kinds[0], schemas, owner)
    if schema.get("type") == "array":
        return [example_of(schema["items"], schemas, owner)]
    if schema.get("type") == "boolean":
        return True
    message = f"{owner}: no example for {dict(schema)}"
    raise KeyError(message)


def _member(name: str, schema: Mapping[str, Any], schemas: Mapping[str, Any], owner: str) -> Any:  # noqa: ANN401  # whatever JSON holds
    place = f"{owner}.{name}"
    if place in _STORY:
        return _STORY[place]
    if not schema.get("examples") and name in _STORY:
        return _STORY[name]
    if not schema.get("examples") and name.endswith("_at"):
        return _AT
    return example_of(schema, schemas, place)
