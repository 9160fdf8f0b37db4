"""What every cell of the matrix answers: written down apart from the code, and read by `test_cells.py`.

`"200 items(site_code) next_cursor"` is a status and the names of the answer, in order, those inside of one in brackets;
`"409 study_not_open"` a status and the code of a problem, which has the names that every problem has. Who has the right stands in
`RIGHTS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Cells:
    """What an operation answers to those who have the right to it; where nothing is said, what it answers at the own site."""

    own: str
    """To a reading; to an act, which is sent an empty body, so that it is told what is missing, and nobody else is."""
    closed: str = ""
    """In a closed study, sent the document's example: nobody is enrolled and nobody given a kit, and the rest goes on."""
    other_site: str = ""
    """About what is at another site, likewise: it is not found, or the list holds nothing of it (USR-21)."""
    unblinded: str = ""
    """To those who make and approve the list, where they are shown more than others (rule B7)."""


DESPITE_EXPIRY: Final = frozenset({"break_code", "add_narrative"})
"""What a role that has ended, or waits for a training, is still good for (rule D1)."""

_EMPTY: Final = "422 invalid"
_MISSING: Final = "404 not_found"
_NOTHING: Final = "200 items next_cursor"
_STATE: Final = "409 illegal_transition"
_BY: Final = "signatures(meaning printed_name role signed_at stands username)"
_RECEIPT: Final = "receipt(leaf_hash log_index)"
_FLAGS: Final = "flags(accidentally_unblinded_at duplicate_of error_mark safety_unblinded_at unblinded_at)"

CELLS: Final[Mapping[str, Cells]] = {
    "register_person": Cells(_EMPTY),
    "list_people": Cells("200 items(created_at display_name email is_active username) next_cursor"),
    "deactivate_person": Cells(_MISSING),
    "reset_person": Cells(_MISSING),
    "end_sessions_of_person": Cells(_MISSING),
    "grant_role": Cells(_EMPTY),
    "confirm_grant": Cells(_MISSING),
    "list_grants": Cells(_MISSING),
    "revoke_grant": Cells(_MISSING),
    "record_training": Cells(_EMPTY),
    "list_trainings": Cells(_MISSING),
    "register_client": Cells(_EMPTY),
    "deactivate_client": Cells(_MISSING),
    "register_issuer": Cells(_EMPTY),
    "confirm_issuer": Cells(_MISSING),
    "list_issuers": Cells(_NOTHING),
    "revoke_issuer": Cells(_MISSING),
    "link_identity": Cells(_EMPTY),
    "confirm_identity": Cells(_MISSING),
    "list_identities": Cells(_NOTHING),
    "end_identity": Cells(_MISSING),
    "issue_client_secret": Cells(_MISSING),
    "list_client_secrets": Cells(_MISSING),
    "revoke_client_secret": Cells(_MISSING),
    "add_client_key": Cells(_EMPTY),
    "list_client_keys": Cells(_MISSING),
    "revoke_client_key": Cells(_MISSING),
    "grant_client_role": Cells(_EMPTY),
    "list_client_grants": Cells(_MISSING),
    "revoke_client_grant": Cells(_MISSING),
    "read_service_trail": Cells(
        "200 items(action actor after at before client index leaf_hash outcome request_id role segment "
        "target) next_cursor"
    ),
    "confirm_recovery": Cells(_EMPTY),
    "declare_recovery": Cells(_EMPTY),
    "register_study": Cells(_EMPTY),
    "read_study": Cells(
        "200 arms(arm_code label ratio treatment) backup_contact blinding exempt_events factors "
        "further_kits_after_break is_signed mode planned_subjects registered_at safety_unblinding_shown "
        f"{_BY} status stock_floor stratify_by_site study_code title"
    ),
    "add_site": Cells(_EMPTY, closed="409 already_exists"),
    "list_sites": Cells(f"200 items(added_at is_active is_signed name {_BY} site_code timezone) next_cursor"),
    "activate_site": Cells(_STATE, closed="409 site_not_ready"),
    "set_study_status": Cells(_EMPTY, closed=_STATE),
    "generate_schedule": Cells(_EMPTY, closed="422 invalid_specification"),
    "extend_schedule": Cells(_EMPTY, closed=_STATE),
    "import_schedule": Cells(_EMPTY, closed="422 invalid_specification"),
    "list_schedules": Cells(
        (
            "200 items(activated_at activated_by algorithm commitment decided_at decided_by generated_at "
            f"generated_by is_signed list_id origin schedule_id segment_number {_BY} status) next_cursor"
        ),
        unblinded=(
            "200 items(activated_at activated_by algorithm block_sizes commitment decided_at decided_by "
            f"generated_at generated_by is_signed list_id origin schedule_id segment_number {_BY} slots status) "
            "next_cursor"
        ),
    ),
    "read_schedule": Cells(
        (
            "200 activated_at activated_by algorithm commitment decided_at decided_by generated_at generated_by "
            f"is_signed list_id origin schedule_id segment_number {_BY} status"
        ),
        unblinded=(
            "200 activated_at activated_by algorithm block_sizes commitment decided_at decided_by generated_at "
            f"generated_by is_signed list_id origin schedule_id segment_number {_BY} slots status"
        ),
    ),
    "read_quality_report": Cells(
        "200 commitment earlier list_id passed reason report(algorithm block_sizes(block_size blocks "
        "expected) correct_guesses expected_correct_guesses expected_runs list_id longest_run mode passed "
        "runs segment_number slots slots_by_arm(CONTROL HUCMSC) strata(cut_blocks full_blocks slots "
        "slots_by_arm(CONTROL HUCMSC) stratum_code) study_code verdicts(expected figure judged limit name "
        "passed)) schedule_id segment_number status warnings"
    ),
    "approve_schedule": Cells(_EMPTY, closed=_STATE),
    "reject_schedule": Cells(_EMPTY, closed=_STATE),
    "activate_schedule": Cells(_STATE),
    "create_consignment": Cells(_EMPTY, closed="409 already_exists"),
    "import_consignment": Cells(_EMPTY, closed="422 faulty_import"),
    "request_packing_list": Cells("201 request_id"),
    "release_packing_list": Cells(_MISSING),
    "dispatch_consignment": Cells(_EMPTY, closed=_STATE),
    "receive_consignment": Cells(_EMPTY, closed=_STATE, other_site=_MISSING),
    "read_stock": Cells(
        "200 counts(assigned in_stock) items(consignment_code kit_code status usable) next_cursor", other_site=_MISSING
    ),
    "read_worklist": Cells("200 items(assigned_at kit_code subject_id visit) next_cursor", other_site=_MISSING),
    "list_subject_kits": Cells(
        "200 items(assigned_at dispensed_at kit_code status usable visit) next_cursor", other_site=_MISSING
    ),
    "assign_kit": Cells(_EMPTY, closed="409 study_not_open", other_site=_MISSING),
    "dispense_kit": Cells(_EMPTY, closed="200 dispensed_at kit_code status subject_id", other_site=_MISSING),
    "replace_kit": Cells(_EMPTY, closed="409 study_not_open", other_site=_MISSING),
    "release_replacement": Cells("200 kit_code released_at", closed="409 already_exists"),
    "quarantine_kit": Cells(_EMPTY, closed=_STATE, other_site=_MISSING),
    "return_kit": Cells(_EMPTY, closed="200 kit_code status", other_site=_MISSING),
    "report_loss": Cells(_EMPTY, closed=_STATE, other_site=_MISSING),
    "report_damage": Cells(_EMPTY, closed=_STATE, other_site=_MISSING),
    "release_kit": Cells(_EMPTY, closed=_STATE),
    "destroy_kit": Cells(_EMPTY, closed=f"200 is_signed kit_code {_BY} status"),
    "read_preparation": Cells(
        "200 arm_code expires_on kit_code lot subject_id treatment", closed="409 kit_mismatch", other_site=_MISSING
    ),
    "allocate": Cells(_EMPTY, closed="409 study_not_open", other_site=_MISSING),
    "list_allocations": Cells(
        (
            f"200 items(allocated_at current_kit_codes {_FLAGS} kit_code mode randomization_number {_RECEIPT} "
            "site_code strata_corrected strata_used study_code subject_id) next_cursor"
        ),
        other_site=_NOTHING,
    ),
    "read_allocation": Cells(
        (
            f"200 allocated_at current_kit_codes {_FLAGS} kit_code mode randomization_number {_RECEIPT} site_code "
            "strata_corrected strata_used study_code subject_id"
        ),
        other_site=_MISSING,
    ),
    "mark_error": Cells(
        _EMPTY, closed=f"201 flagged_at flagged_by is_signed kind {_RECEIPT} {_BY} subject_id", other_site=_MISSING
    ),
    "correct_strata": Cells(
        _EMPTY, closed=f"201 flagged_at flagged_by is_signed kind {_RECEIPT} signatures subject_id", other_site=_MISSING
    ),
    "link_duplicate": Cells(
        _EMPTY, closed=f"201 flagged_at flagged_by is_signed kind {_RECEIPT} signatures subject_id", other_site=_MISSING
    ),
    "break_code": Cells(
        _EMPTY,
        closed=f"201 arm_code code_break_id kit_codes {_RECEIPT} revealed_at subject_id treatment",
        other_site=_MISSING,
    ),
    "list_code_breaks": Cells(
        (
            "200 items(assessed_at assessment_due_at broken_at broken_by by_kit_code code_break_id impact is_signed kind kit_code "
            "narrated_at narrative_due_at opened_by overdue own_site reason_code role seconds_to_reveal "
            f"{_BY} site_code status subject_id) next_cursor"
        ),
        other_site=_NOTHING,
    ),
    "drill": Cells(
        _EMPTY,
        closed=(
            f"201 arm_code drill_id kit_codes {_RECEIPT} revealed_at seconds_to_reveal site_code subject_id treatment"
        ),
        other_site=_MISSING,
    ),
    "list_drills": Cells(
        (
            "200 items(drill_id revealed_at seconds_to_reveal site_code username) next_cursor "
            "people(last_drill_at overdue site_code username)"
        ),
        other_site="200 items next_cursor people(last_drill_at overdue site_code username)",
    ),
    "add_narrative": Cells(_EMPTY, closed=_MISSING, other_site=_MISSING),
    "assess_break": Cells(_EMPTY, closed=_MISSING, other_site=_MISSING),
    "record_accident": Cells(
        _EMPTY,
        closed=(
            f"201 accidental_unblinding_id happened_at how_learnt {_RECEIPT} recorded_at recorded_by site_code "
            "subject_id who_learnt"
        ),
        other_site=_MISSING,
    ),
    "list_accidents": Cells(
        (
            "200 items(accidental_unblinding_id happened_at how_learnt recorded_at recorded_by site_code "
            "subject_id who_learnt) next_cursor"
        ),
        other_site=_NOTHING,
    ),
    "request_for_third_party": Cells(
        _EMPTY,
        closed=f"201 is_signed open_until physician {_RECEIPT} {_BY} subject_id third_party_unblinding_id",
        other_site=_MISSING,
    ),
    "list_third_party": Cells(
        (
            f"200 items(is_signed openings physician reason_code requested_at requested_by role {_BY} site_code "
            "subject_id third_party_unblinding_id) next_cursor"
        ),
        other_site=_NOTHING,
    ),
    "open_for_third_party": Cells(_MISSING),
    "release_sheets": Cells(_EMPTY, closed=_STATE),
    "enter_opening": Cells(_EMPTY, closed=_MISSING),
    "read_envelopes": Cells("200 is_on missing opened sites"),
    "add_contact": Cells(_EMPTY, closed=_STATE),
    "list_contacts": Cells(_NOTHING),
    "remove_contact": Cells(_MISSING),
    "add_webhook": Cells(_EMPTY, closed="409 already_exists"),
    "list_webhooks": Cells(
        "200 items(added_at added_by delivered disabled_at given_up removed_at url waiting webhook_id) next_cursor"
    ),
    "remove_webhook": Cells(_MISSING),
    "unblind_for_safety": Cells(
        _EMPTY, closed=f"201 arm_code kit_codes {_RECEIPT} revealed_at safety_unblinding_id subject_id treatment"
    ),
    "list_safety_unblindings": Cells(
        f"200 items(is_signed safety_unblinding_id {_BY} status subject_id unblinded_at unblinded_by) next_cursor"
    ),
    "read_unblinding_log": Cells(
        "200 items(actor at index kind leaf_hash outcome purpose(how_learnt reason_code who_learnt) "
        "role safeguards segment stays_blinded target "
        "who_learns) next_cursor"
    ),
    "export_unblinding_log": Cells("200 text/csv"),
    "read_residual": Cells(
        "200 items(block block_size chance_after chance_before hidden revealed schedule_id stratum_code)"
    ),
    "request_interim": Cells(
        _EMPTY, closed=f"201 data_cut_at is_signed {_RECEIPT} request_id requested_at requested_by {_BY}"
    ),
    "release_interim": Cells(_EMPTY, closed=_MISSING),
    "list_interims": Cells(
        "200 items(board data_cut_at is_signed released_at released_by request_id requested_at requested_by "
        f"show {_BY} strata) next_cursor"
    ),
    "request_final_unblinding": Cells(
        _EMPTY, closed=f"201 is_signed {_RECEIPT} request_id requested_at requested_by {_BY}"
    ),
    "release_final_unblinding": Cells(_MISSING),
    "read_trail": Cells(
        "200 items(action actor after at before client index leaf_hash outcome request_id role segment "
        "target) next_cursor"
    ),
    "read_checkpoint": Cells("200 text/plain"),
    "prove_entry": Cells("200 checkpoint index leaf_hash proof root size"),
    "prove_growth": Cells(_EMPTY),
    "export_trail": Cells("200 application/x-ndjson"),
    "read_restricted": Cells(_MISSING),
    "list_delegations": Cells(
        "200 access_review_due_at is_access_review_overdue items(deactivated_at display_name ends_at grant_id granted_at "
        "granted_by is_machine revoked_at revoked_by role site_code starts_at username) next_cursor"
    ),
    "start_recall": Cells(
        _EMPTY, closed=f"201 consignment_codes is_signed recall_id recalled_at recalled_by {_RECEIPT} {_BY}"
    ),
    "release_recall": Cells(_MISSING),
    "list_recalls": Cells(
        _NOTHING,
        closed=(
            "200 items(consignment_codes is_signed recall_id recalled_at recalled_by released_at released_by "
            f"{_BY}) next_cursor"
        ),
    ),
    "list_call_backs": Cells(
        _NOTHING,
        closed="200 items(consignment_code kit_code status subject_id to_do) next_cursor",
        other_site=_MISSING,
    ),
    "read_current_access": Cells(
        "200 content_hash due_at is_overdue items(display_name ends_at grant_id granted_at granted_by is_machine "
        "last_sign_in_at last_used_at role site_code starts_at training username) last_reviewed_at"
    ),
    "sign_access_review": Cells(_EMPTY, closed="409 review_outdated"),
    "list_access_reviews": Cells(_NOTHING),
    "list_outstanding_reviews": Cells("200 items(due_at is_overdue last_reviewed_at study_code to_revoke) next_cursor"),
    "read_disclosures": Cells(
        "200 items(action actor at client in_words index leaf_hash learnt log organisation outcome proof role "
        "section segment target) next_cursor not_shown subject_id"
    ),
}
"""By operation; a new one says here what it answers, and in `RIGHTS` to whom."""
