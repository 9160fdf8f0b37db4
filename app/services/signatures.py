"""Sign a record with the act that makes or decides it, and show who signed it (21 CFR 11.50, 11.70, 11.200).

The door sees to it that an act of the policy's list of signatures signs something: the proof that opened it is the second
component, its meaning stands in that list, and the signature is committed with the act, or not at all.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from app.domain.people import Proof
from app.domain.signatures import RecordKind, Signature, SignatureShown, content_hash
from app.domain.words import Role
from app.errors import IntegrityBroken
from app.services.audited import Act
from app.storage import signatures
from app.storage.dual_control import DualControlRequest
from app.storage.signatures import KeptSignature
from app.storage.unblinding import NewCodeBreak

R = TypeVar("R")
Content = Mapping[str, Any]
_SEAL: Final = "signature"


def sign(act: Act, kind: RecordKind, record_id: str, content: Content) -> None:
    """Sign a record in the name of the caller; the entry of the act tells meaning and printed name (SIG-03).

    To be called behind the last note of what the entry tells.
    """
    caller = act.principal
    signature = Signature(
        act.deployment.new_id(),
        kind,
        record_id,
        content_hash(content),
        act.meaning,
        caller.display_name,
        caller.name,
        # Nothing is signed but by a role, and with a second proof (`app.policy.SIGNING`).
        cast("Role", act.role),
        act.now,
        caller.session_id,
        cast("Proof", caller.proof).at,
    )
    mac = act.deployment.ring.mac(_SEAL, _sealed(act, signature))
    signatures.add_signature(act.tx, act.study.study_id, KeptSignature(signature, mac))
    act.is_signed = True
    act.note(after={**(act.after or {}), "meaning": signature.meaning, "printed_name": signature.printed_name})


def with_signatures(
    act: Act, kind: RecordKind, records: Iterable[R], named: Callable[[R], tuple[str, Content]]
) -> list[R]:
    """Return records with their signatures; ``named`` gives the id of one, and its content as it stands now.

    A record that no longer says what was last signed is unsigned, and its old signatures are shown all the same (SIG-05).
    """
    present = [(record, *named(record)) for record in records]
    given: dict[str, list[KeptSignature]] = {}
    if present:
        ids = [record_id for _, record_id, _ in present]
        for kept in signatures.list_signatures(act.tx, act.study.study_id, kind, ids):
            given.setdefault(kept.signature.record_id, []).append(kept)
    signed = []
    for record, record_id, content in present:
        shown = tuple(_shown(act, kept, content_hash(content)) for kept in given.get(record_id, ()))
        is_signed = bool(shown) and shown[-1].stands
        signed.append(cast("R", replace(cast("Any", record), is_signed=is_signed, signatures=shown)))
    return signed


def _shown(act: Act, kept: KeptSignature, present: bytes) -> SignatureShown:
    one = kept.signature
    try:
        act.deployment.ring.check_mac(_SEAL, _sealed(act, one), kept.mac)
    except IntegrityBroken:
        is_genuine = False
    else:
        is_genuine = True
    stands = is_genuine and one.content_hash == present
    return SignatureShown(one.printed_name, one.username, one.role, one.signed_at, one.meaning, stands)


def _sealed(act: Act, signature: Signature) -> bytes:
    """Return what a seal is made over: the study too, so that no signature of another one fits."""
    return act.study.study_code.encode() + b"\n" + signature.message()


# -- contents that more than one feature signs -------------------------------------------------------------------------


def request_content(request: DualControlRequest) -> Content:
    """Return what is signed of a request that two people decide; its statement is bound to it by its seal."""
    return {
        "request_id": str(request.request_id),
        "kind": request.kind,
        "consignment_id": None if request.consignment_id is None else str(request.consignment_id),
        "recipient_key": request.recipient_key,
        "requested_at": request.requested_at.isoformat(timespec="microseconds"),
        "requested_by": request.requested_by,
    }


def code_break_content(code_break: NewCodeBreak) -> Content:
    """Return what is signed of a code break: who asked about whom, when and why, and nothing of what was shown."""
    return {
        "code_break_id": str(code_break.code_break_id),
        "subject": code_break.subject_key,
        "kit_id": None if code_break.kit_id is None else str(code_break.kit_id),
        "site_code": code_break.site_code,
        "by_kit_code": code_break.is_by_kit_code,
        "own_site": code_break.is_own_site,
        "reason_code": code_break.reason_code,
        "broken_at": code_break.broken_at.isoformat(timespec="microseconds"),
        "broken_by": code_break.broken_by,
        "role": code_break.role,
        "opened_by": code_break.opened_by,
    }
