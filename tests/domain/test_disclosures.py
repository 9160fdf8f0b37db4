"""What an entry means for a subject: one word and a plain sentence for every act, and never an arm."""

from collections.abc import Mapping
from typing import Any, Final

import pytest

from app.domain.disclosures import ABOUT_SUBJECT, KEY_USE, LISTING, OPENING, REVEALING, Learnt, Section, told
from app.domain.words import Action


def learnt(section: Section, action: str, outcome: str = "done", after: Mapping[str, Any] | None = None) -> Learnt:
    return told(section, action, outcome, after, did_leave=True, is_told=True).learnt


TELLS_NOTHING: Final = frozenset(
    {
        *(Action.SIGN_IN, Action.STEP_UP, Action.SIGN_OUT, Action.ISSUE_TOKEN, Action.CHANGE_PASSWORD),
        *(Action.LIST_SESSIONS, Action.END_SESSIONS, Action.READ_DELEGATIONS),
        *(Action.ADD_CONTACT, Action.ADD_WEBHOOK, Action.READ_RECEIVERS, Action.REMOVE_RECEIVER),
        *(Action.RECORD_TRAINING, Action.LIST_TRAININGS),
        *(Action.READ_SELF, Action.REGISTER_PERSON, Action.LIST_PEOPLE, Action.DEACTIVATE_PERSON),
        *(Action.RESET_PERSON, Action.REGISTER_CLIENT, Action.GRANT_ROLE, Action.LIST_GRANTS, Action.REVOKE_GRANT),
        Action.CONFIRM_GRANT,
        *(Action.ISSUE_CLIENT_SECRET, Action.ADD_CLIENT_KEY, Action.LIST_CLIENT_CREDENTIALS),
        Action.REVOKE_CLIENT_CREDENTIAL,
        *(Action.READ_ACCESS_REVIEWS, Action.SIGN_ACCESS_REVIEW, Action.LIST_OUTSTANDING_REVIEWS),
        Action.DRILL,
        Action.READ_DRILLS,
        *(Action.REGISTER_ISSUER, Action.CONFIRM_ISSUER, Action.LIST_ISSUERS, Action.REVOKE_ISSUER),
        *(Action.LINK_IDENTITY, Action.CONFIRM_IDENTITY, Action.LIST_IDENTITIES, Action.END_IDENTITY),
        *(Action.READ_OWN_IDENTITIES, Action.CONFIRM_OWN_IDENTITY),
        *(Action.LIST_DEVICES, Action.END_DEVICE),
        *(Action.REQUEST_FACTOR_RECOVERY, Action.CONFIRM_FACTOR_RECOVERY, Action.COMPLETE_FACTOR_RECOVERY),
        *(Action.READ_SERVICE_TRAIL, Action.DECLARE_RECOVERY, Action.READ_CHECKPOINT, Action.READ_PROOF),
        *(Action.REGISTER_STUDY, Action.READ_STUDY, Action.ADD_SITE, Action.LIST_SITES, Action.ACTIVATE_SITE),
        *(Action.SET_STUDY_STATUS, Action.READ_SCHEDULES, Action.REJECT_SCHEDULE, Action.ACTIVATE_SCHEDULE),
        *(
            Action.BEGIN_SIGN_IN,
            Action.CHALLENGE_PASSKEY,
            Action.BEGIN_PASSKEY,
            Action.ADD_PASSKEY,
            Action.LIST_PASSKEYS,
            Action.REMOVE_PASSKEY,
        ),
        *(Action.REQUEST_PACKING_LIST, Action.DISPATCH_CONSIGNMENT, Action.RECEIVE_CONSIGNMENT, Action.READ_STOCK),
        *(Action.RELEASE_REPLACEMENT, Action.RELEASE_KIT, Action.DESTROY_KIT, Action.REQUEST_FINAL_UNBLINDING),
        *(Action.REQUEST_INTERIM, Action.READ_INTERIMS, Action.READ_RECALLS),
    }
)
"""Acts by which nobody learns anything of a subject, and nothing sealed is opened."""


class TestTold:
    def test_every_action_has_its_place(self) -> None:
        """An action that is new is put into a section, or among those that tell nothing. [E1, AUD-10]"""
        placed = ABOUT_SUBJECT | OPENING | LISTING | KEY_USE
        assert set(Action) <= placed | TELLS_NOTHING
        assert not placed & TELLS_NOTHING

    def test_every_act_on_many(self) -> None:
        """Each action of a section has its word, in that section alone. [E1, BLD-20]"""
        assert {learnt(Section.LISTS, action) for action in LISTING} == {Learnt.RECORD}
        assert {learnt(Section.KEYS, action) for action in KEY_USE} == {Learnt.SEALED, Learnt.KEYS}
        opened = {action: learnt(Section.OPENED, action) for action in OPENING}
        revealing = {action for action, what in opened.items() if what is Learnt.TREATMENT}
        assert revealing == REVEALING - {Action.READ_PREPARATION, Action.OPEN_FOR_THIRD_PARTY} | {
            Action.IMPORT_SCHEDULE
        }
        assert not OPENING & LISTING
        assert not OPENING & KEY_USE

    @pytest.mark.parametrize(
        ("outcome", "expected"),
        [
            ("authorised", Learnt.TREATMENT),
            ("done", Learnt.TREATMENT),
            ("withheld", Learnt.SEALED),
            ("unknown", Learnt.SEALED),
            ("denied", Learnt.REFUSED),
            ("refused", Learnt.REFUSED),
            ("integrity", Learnt.REFUSED),
        ],
    )
    def test_how_it_ended(self, outcome: str, expected: Learnt) -> None:
        """Only what left the service is told as seen. [D4]"""
        assert learnt(Section.SUBJECT, Action.BREAK_CODE, outcome) is expected

    def test_withheld_by_a_second_entry(self) -> None:
        """The first entry alone would say more than was seen. [D4]"""
        said = told(Section.SUBJECT, Action.BREAK_CODE, "authorised", None, did_leave=False, is_told=True)
        assert said.learnt is Learnt.SEALED

    def test_envelope_and_escrow(self) -> None:
        """Who opened an envelope knows the treatment; an escrow is for whoever holds its key. [D5, CUS-12]"""
        assert learnt(Section.SUBJECT, Action.ENTER_OPENING) is Learnt.TREATMENT
        assert learnt(Section.KEYS, "key:escrow") is Learnt.KEYS

    def test_of_a_safety_unblinding(self) -> None:
        """Whose it was is told only to who may know. [E3]"""
        for is_told, expected in ((True, Learnt.TREATMENT), (False, Learnt.UNTOLD)):
            said = told(Section.OPENED, Action.UNBLIND_FOR_SAFETY, "authorised", {}, did_leave=True, is_told=is_told)
            assert said.learnt is expected

    def test_of_what_came_from_outside(self) -> None:
        """Who brings in a list or a kit map knows it; who has one made by the service does not. [SEQ-08, CUS-02]"""
        for action in (Action.GENERATE_SCHEDULE, Action.CREATE_CONSIGNMENT):
            assert learnt(Section.OPENED, action, after={"origin": "imported"}) is Learnt.TREATMENT
            assert learnt(Section.OPENED, action, after={"origin": "generated"}) is Learnt.SEALED

    def test_encrypted(self) -> None:
        """What left under a recipient's key is said to have. [F3]"""
        plain, encrypted = (
            told(Section.OPENED, Action.RELEASE_PACKING_LIST, "done", {"encrypted": so}, did_leave=True, is_told=True)
            for so in (False, True)
        )
        assert encrypted.learnt is plain.learnt
        assert encrypted.in_words == f"{plain.in_words}, encrypted for the holder of a key"

    def test_new_action(self) -> None:
        """An act about a subject that has no word of its own is there all the same. [E1]"""
        assert learnt(Section.SUBJECT, "record:something_new") is Learnt.RECORD
