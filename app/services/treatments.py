"""What a treatment is, for whoever is shown one: the code breaks, the safety door and the third party's (rule D4).

Only binding, slot and kits together say it, and only when they agree with each other and with the words that were signed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from app.domain.contents import Binding
from app.domain.sealed import Column, SealContext
from app.domain.words import ArmCode, KitCode, SiteCode, SubjectId, SubjectKey
from app.errors import IntegrityBroken, RevealUnavailable, Unavailable
from app.services.audited import Act
from app.services.context import RequestContext
from app.services.evidence import open_allocation, open_assigned_kit, open_kit
from app.storage import commitments, kits, studies, unblinding
from app.storage.allocations import Allocation
from app.storage.kits import KitRow


@dataclass(frozen=True, slots=True)
class Shown:
    """What the sealed evidence says of one subject, or of one kit. Danger: holds an arm."""

    subject_id: SubjectId | None
    subject_key: SubjectKey | None
    site_code: SiteCode | None
    arm_code: ArmCode = field(repr=False)
    treatment: str = field(repr=False)
    kit_codes: Sequence[KitCode] = ()


def open_subject(act: Act, allocation: Allocation) -> Shown:
    """Return what a subject was given; raise ``IntegrityBroken`` unless binding, slot and every kit agree (rule D4)."""
    study_id = act.study.study_id
    given = kits.list_assignments(act.tx, study_id, allocation.subject_key)
    first = next((one.kit for one in given if one.visit is None and one.replaces is None), None)
    if first is None:
        message = "An allocation has lost its kit."
        raise IntegrityBroken(message)
    told = [open_allocation(act, allocation, first.kit_id)]
    told += [open_assigned_kit(act, one)[1] for one in given]
    arms, treatments = {binding.arm_code for binding in told}, {binding.treatment for binding in told}
    agreed = _agreed(act, arms, treatments, [allocation.schedule_id])
    return Shown(
        allocation.subject_id,
        allocation.subject_key,
        allocation.site_code,
        agreed.arm_code,
        agreed.treatment,
        tuple(one.kit.kit_code for one in given),
    )


def open_kit_of_nobody(act: Act, kit: KitRow) -> Shown:
    """Return what is in a kit that nobody was given."""
    study_id = act.study.study_id
    opened = open_kit(act, kits.get_sealed_kit(act.tx, study_id, kit.kit_id))
    signed = unblinding.list_signed_schedules(act.tx, study_id)
    agreed = _agreed(act, {opened.arm_code}, set(), signed)
    return Shown(None, None, kit.site_code, agreed.arm_code, agreed.treatment, (kit.kit_code,))


def _agreed(act: Act, arms: set[ArmCode], treatments: set[str], signed_by: Sequence[UUID]) -> Binding:
    """Return the one arm and the one treatment that everything speaks of; raise ``IntegrityBroken`` otherwise.

    The words of the definition, too, are compared with those that the approver signed: a text that was changed in the database
    would tell a physician the wrong product.
    """
    words: list[Mapping[ArmCode, str]] = [
        {arm.arm_code: arm.treatment for arm in studies.list_arms(act.tx, act.study.study_id)}
    ]
    words += [_signed_words(act, schedule_id) for schedule_id in signed_by]
    said = treatments | {one.get(arm) for one in words for arm in arms}
    treatment = said.pop()
    if len(arms) != 1 or said or treatment is None:
        message = "Binding, slot, kits and the signed words of the treatment do not agree."
        raise IntegrityBroken(message)
    return Binding(next(iter(arms)), treatment)


def _signed_words(act: Act, schedule_id: UUID) -> Mapping[ArmCode, str]:
    """Return the treatments by arm as the specification of a list has them, proved to its signature."""
    act.deployment.commitments.verify_list(act.tx, act.study, schedule_id)
    kept = commitments.get_list_commitment(act.tx, act.study.study_id, schedule_id)
    context = SealContext(Column.SPECIFICATION, act.study.study_code, (str(schedule_id),))
    document = json.loads(act.deployment.ring.open(context, kept.sealed_specification))
    return {ArmCode(arm["arm_code"]): str(arm["treatment"]) for arm in document["arms"]}


@dataclass(slots=True)
class Contact:
    """Whom to ask when the service cannot reveal."""

    text: str


@contextmanager
def contact_when_unavailable(ctx: RequestContext) -> Iterator[Contact]:
    """Turn everything that is "not now" into one answer with the back-up contact (rule D4, EUB-11).

    The study's contact once the study was read; that of the settings while the database is down.
    """
    contact = Contact(ctx.deployment.limits.backup_contact)
    try:
        yield contact
    except Unavailable:
        raise RevealUnavailable(backup_contact=contact.text) from None
