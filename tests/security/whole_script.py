"""The whole script: what is left of the API's operations and errors once the trial of `script.py` was played.

    with running(url, folder) as house:
        play = WholePlay.in_house(house)
        package = play.run()

People come and go, lists are refused, rejected and extended, kits imported and packed; then the database, the sink, the hashing of
passwords, a stored row and the service itself fail; the study ends; whatever operation the document has beside those is tried as
its example shows it, by everybody blinded who may, and by somebody who may not; at last logs are altered, rolled back and recovered
from, and the key is gone.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Final
from unittest.mock import patch

from sqlalchemy import select, update

from app.cli.trial import Machine, Person
from app.domain.codes import ALPHABET, check_character
from app.domain.words import Action, Role
from app.identity.codes import code_of_step, step_at
from app.identity.passwords import PLACES
from app.services import audited, stock
from app.services.keeper import Keeper
from app.storage import answers, tables
from app.storage.database import TryAgain
from app.storage.sink import FileSink, SunkCheckpoint
from tests.authenticator import Authenticator
from tests.doors import Fault, failing, lift_triggers
from tests.envelopes import DESK_PUBLIC
from tests.security.operations import Operation, operation_at, operations_of
from tests.security.script import SECOND_SITE, Play, name_of
from tests.security.test_code_break_faults import full_disk
from tests.security.test_rollback import alter_head

THIRD_SITE: Final = "03"
LEAVER: Final = "leaver"
BOTH: Final = "statistician.and.approver"
SPARE_CLIENT: Final = "Spare system"
SPARE_KEY: Final = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
SECOND_ADMIN: Final = "second.admin"
OUTSIDE: Final = "https://login.hospital.example"
EXTENSION: Final = 8
LONG_AFTER: Final = timedelta(days=701)
"""After the consignments that the script sends in its course have expired."""
MACHINE_SESSION: Final = timedelta(minutes=25)
_documented: Final[list[Operation]] = []


class WholePlay(Play):
    """The script with everything in it."""

    import_label = "first import"
    """What the arms of imported kits are drawn by."""
    thorough = False
    """Whether every role asks for everything once more, whatever it has asked for before."""
    since: Mapping[str, datetime] = MappingProxyType({})
    """When a machine got its token."""

    def run(self) -> bytes:
        """Play everything and return the final package."""
        enrolled = self.begin()
        self.keep()
        self.read_state([1, 5])
        self.read_documented()
        enrolled = self.go_to_the_floor(enrolled)
        self.exhaust(enrolled)
        enrolled = self.extend()
        enrolled = self.fail_around(enrolled)
        self.fail_inside(enrolled)
        self.stop()
        self.call_back()
        self.expire()
        package = self.unblind()
        self.keep()
        self.play_what_is_left()
        self.read_everything([2, enrolled])
        self.sweep()
        self.lose_what_was_kept()
        return package

    def begin(self) -> int:
        """Do what is done while all is well, and return how many are enrolled."""
        enrolled = self.play_blinded()
        self.unblind_some()
        self.unblind_more()
        self.open_an_envelope()
        self.have_somebody_told()
        self.review_access()
        self.administer()
        self.misuse_lists()
        self.pack_and_import()
        return enrolled

    def _token(self, who: Person | Machine, *, step_up: bool) -> str:
        """Return a token; the script lasts longer than that of a machine."""
        if isinstance(who, Machine):
            if self.now() - self.since.get(who.client_id, self.now()) > MACHINE_SESSION:
                who.token = ""
            if not who.token:
                self.since = {**self.since, who.client_id: self.now()}
        return super()._token(who, step_up=step_up)

    # -- the rest of the trial

    def unblind_more(self) -> None:
        """Break codes at the other doors: on another's behalf, by a kit in hand at another site, and read the registers."""
        officer, elsewhere = self.who(Role.SAFETY_OFFICER), self.people[Role.INVESTIGATOR][2]
        breaks = f"{self.study}/code-breaks"
        behalf = {"subject_id": self.subject_id(4), "reason_code": "overdose", "requested_by": "Dr on call"}
        self.prove_anew(officer)
        self.ask(officer, "POST", breaks, behalf, step_up=True)
        in_hand = {"kit_code": self.kits_of(8)[0]["kit_code"], "reason_code": "urgent_treatment_decision"}
        self.tell(elsewhere, "POST", breaks, {**in_hand, "confirm_subject_id": self.subject_id(4)}, step_up=True)
        self.ask(elsewhere, "POST", breaks, in_hand, step_up=True)
        for who in (officer, elsewhere):
            self.prove_anew(who)
        self.ask(officer, "GET", f"{self.study}/safety-unblindings")
        self.show_a_board()
        self.read_restricted(officer, Action.MARK_ERROR)

    def show_a_board(self) -> None:
        """Have the allocations up to now released for a board, by two people."""
        interims, key = f"{self.study}/interim-unblinding-requests", base64.b64encode(bytes([9] + [0] * 31)).decode()
        wanted = {"data_cut_at": self.now().isoformat(), "recipient_key": key}
        self.clock.advance(minutes=5)
        asked = {**wanted, "board": "The board", "meaning": "responsibility"}
        statistician, approver = self.who(Role.STATISTICIAN), self.who(Role.LIST_APPROVER)
        request = self.ask(statistician, "POST", interims, asked, step_up=True).json()["request_id"]
        release, body = f"{interims}/{request}/release", {**wanted, "meaning": "approval"}
        self.ask(approver, "POST", release, body, step_up=True)
        self.prove_anew(approver)
        self.ask(statistician, "GET", f"{self.study}/residual-inference")
        self.tell(self.who(Role.MONITOR), "POST", interims, asked)
        self.tell(self.who(Role.MONITOR), "POST", release, body)
        self.tell(self.who(Role.STUDY_ADMIN), "GET", interims)

    def open_an_envelope(self) -> None:
        """Have the files of the envelopes written, one of them opened while nobody saw it, and another one taken away."""
        keeper = Keeper(self.house.deployment)
        keeper.envelope_round()
        opened, taken = (self.kits_of(number)[0]["kit_code"] for number in (7, 9))
        told = {
            "kit_code": opened,
            "opened_at": self.now().isoformat(),
            "opened_by": "The desk",
            "reason_code": "overdose",
            "reason": "The service was down",
        }
        admin, openings = self.who(Role.STUDY_ADMIN), f"{self.study}/envelope-openings"
        self.tell(admin, "POST", openings, {**told, "opened_at": "2020-01-01T00:00:00+00:00"}, step_up=True)
        for _ in range(2):
            self.tell(admin, "POST", openings, told, step_up=True)
        folder = self.house.settings.envelope_folder
        assert folder is not None
        (folder / self.protocol.study_code / f"{taken}.envelope").unlink()
        self.tell(self.who(Role.MONITOR), "GET", f"{self.study}/envelopes")
        keeper.envelope_round()
        self.tell(self.who(Role.PHARMACIST), "GET", f"{self.study}/envelopes")

    def have_somebody_told(self) -> None:
        """Have somebody of the sponsor and a machine told of code breaks, look, and take both off the lists again."""
        admin = self.who(Role.STUDY_ADMIN)
        for kind, receiver in (
            ("contact", {"email": "safety@sponsor.example.org"}),
            ("webhook", {"url": "https://edc.example.org/hooks"}),
        ):
            path = f"{self.study}/{kind}s"
            self.tell(admin, "POST", path, receiver)
            self.tell(admin, "POST", path, receiver)
            self.tell(self.who(Role.MONITOR), "GET", path)
            for one in self.tell(admin, "GET", path).json()["items"]:
                self.tell(admin, "DELETE", f"{path}/{one[f'{kind}_id']}")

    def review_access(self) -> None:
        """Have the study administrator look at who holds what, and sign for it: for something else first, then for that."""
        admin, reviews = self.who(Role.STUDY_ADMIN), f"{self.study}/access-reviews"
        current = self.tell(admin, "GET", f"{reviews}/current").json()
        decisions = [{"grant_id": one["grant_id"], "verdict": "keep"} for one in current["items"]]
        for content_hash in ("0" * 64, current["content_hash"]):
            body = {"content_hash": content_hash, "decisions": decisions}
            self.tell(admin, "POST", reviews, body, step_up=True)

    def read_restricted(self, who: Person, action: Action) -> None:
        """Have somebody open the restricted part of the first entry of an action."""
        path = f"{self.study}/trail?action={action}&limit=1"
        index = self.ask(self.who(Role.MONITOR), "GET", path).json()["items"][0]["index"]
        self.prove_anew(who)
        self.ask(who, "GET", f"{self.study}/trail/{index}/restricted", step_up=True)
        self.prove_anew(who)

    def extend(self) -> int:
        """Extend the list that is used up, allocate from the extension, and return how many are enrolled then."""
        statistician, first = self.who(Role.STATISTICIAN), self.first_list()
        longer: dict[str, Any] = {
            **self.specification(),
            "lengths": [{"strata": {}, "length": EXTENSION}],
            "reason": "More subjects are needed",
        }
        del longer["length_per_stratum"]
        made = self.ask(statistician, "POST", f"{first}/segments", longer, step_up=True).json()
        path = f"{self.study}/schedules/{made['schedule_id']}"
        approval = {"commitment": made["commitment"], "meaning": "approval"}
        self.ask(self.who(Role.LIST_APPROVER), "POST", f"{path}/approval", approval, step_up=True)
        self.ask(self.who(Role.STUDY_ADMIN), "POST", f"{path}/activation", step_up=True)
        enrolled = self.protocol.planned_subjects
        for number in (enrolled + 1, enrolled + 2):
            self.allocate(self.edc, number)
        return enrolled + 2

    def first_list(self) -> str:
        """Return the path of the study's first list."""
        lists = self.ask(self.who(Role.STUDY_ADMIN), "GET", f"{self.study}/schedules").json()["items"]
        first = min(lists, key=lambda one: one["generated_at"])
        return f"{self.study}/schedules/{first['schedule_id']}"

    def specification(self, **changes: object) -> dict[str, object]:
        return {
            "block_sizes": list(self.block_sizes),
            "block_size_weights": [1] * len(self.block_sizes),
            "length_per_stratum": EXTENSION,
            "fill": "exact",
            **changes,
        }

    def misuse_lists(self) -> None:
        """Ask for lists that cannot be, and make one that its maker may not approve and the approver rejects."""
        both = self.join(BOTH, Role.STATISTICIAN)
        self.people[Role.STATISTICIAN].remove(both)
        self.grant(f"/v1/people/{BOTH}/grants", Role.LIST_APPROVER)
        lists, approver = f"{self.study}/schedules", self.who(Role.LIST_APPROVER)
        self.tell(both, "POST", lists, self.specification(block_sizes=[3], block_size_weights=[1]), step_up=True)
        self.tell(both, "POST", lists, self.specification(), step_up=True)
        made = self.ask(both, "POST", lists, self.specification(reason="The first was too long"), step_up=True).json()
        path = f"{lists}/{made['schedule_id']}"
        approval = {"commitment": made["commitment"], "meaning": "approval"}
        self.tell(both, "POST", f"{path}/approval", approval, step_up=True)
        self.tell(approver, "POST", f"{path}/approval", {**approval, "commitment": "0" * 64}, step_up=True)
        self.ask(approver, "GET", f"{path}/quality-report")
        self.ask(approver, "POST", f"{path}/rejection", {"reason": "Not needed"}, step_up=True)
        self.tell(self.who(Role.STUDY_ADMIN), "POST", f"{path}/activation", step_up=True)
        self.read_restricted(self.who(Role.STATISTICIAN), Action.GENERATE_SCHEDULE)
        self.import_list()

    def import_list(self) -> None:
        """Have a list imported, once with an altered file and once with a faulty one before; the approver rejects it."""
        lists, statistician = f"{self.study}/schedules", self.who(Role.STATISTICIAN)
        arms = [arm["arm_code"] for arm in self.protocol.arms]
        lines = [f",{at},{arms[at % len(arms)]},0,{EXTENSION}\n" for at in range(EXTENSION)]
        made: dict[str, Any] = {}
        for chosen, end in ((lines, "\n"), (lines[1:], ""), (lines, "")):
            list_csv = "".join(["stratum_code,position,arm_code,block,block_size\n", *chosen])
            body = {
                "specification": self.specification(reason="Made by the sponsor's own statistician"),
                "list_csv": list_csv + end,
                "digest": hashlib.sha256(list_csv.encode()).hexdigest(),
            }
            made = self.tell(statistician, "POST", f"{lists}/imports", body, step_up=True).json()
        path = f"{lists}/{made['schedule_id']}/rejection"
        self.ask(self.who(Role.LIST_APPROVER), "POST", path, {"reason": "The generated one is used"}, step_up=True)

    def pack_and_import(self) -> None:
        """Have a packing list released by a second person, and a consignment imported that is on its way to another site."""
        manager, second = self.who(Role.SUPPLY_MANAGER), self.who(Role.STATISTICIAN)
        requests = f"{self.study}/consignments/C9/packing-list-requests"
        asked = self.ask(manager, "POST", requests, step_up=True).json()
        release = f"{requests}/{asked['request_id']}/release"
        self.tell(manager, "POST", release, step_up=True)
        self.prove_anew(second)
        self.ask(second, "POST", release, step_up=True)
        self.prove_anew(second)
        self.tell(second, "POST", release, step_up=True)
        sheets = f"{self.study}/consignments/C9/sheets"
        self.ask(manager, "POST", sheets, {"recipient_key": DESK_PUBLIC}, step_up=True)
        path = f"{self.study}/consignments/C8/kits"
        lines = self.imported_kits()
        self.tell(manager, "POST", path, [{**line, "arm_code": lines[0]["arm_code"]} for line in lines], step_up=True)
        self.ask(manager, "POST", path, lines, step_up=True)
        self.ask(manager, "POST", f"{self.study}/consignments/C8/dispatch", {"site_code": SECOND_SITE})

    def imported_kits(self) -> list[dict[str, str]]:
        """Return the lines of an import, whose codes and arms a manufacturer drew."""
        drawn = hashlib.shake_256(self.import_label.encode()).digest(8 * 12)
        codes = ["".join(ALPHABET[byte % len(ALPHABET)] for byte in drawn[at : at + 8]) for at in range(0, 8 * 12, 8)]
        order = sorted(range(12), key=lambda line: hashlib.sha256(codes[line].encode()).digest())
        arms = [arm["arm_code"] for arm in self.protocol.arms]
        day = (self.now().date() + timedelta(days=700)).isoformat()
        return [
            {
                "kit_code": codes[line] + check_character(codes[line]),
                "arm_code": arms[order[line] % len(arms)],
                "lot": "L-import",
                "expires_on": day,
            }
            for line in range(12)
        ]

    def call_back(self) -> None:
        """Have a lot called back, which is an arm; everybody looks at what is said of it."""
        supply, approver, recalls = self.who(Role.SUPPLY_MANAGER), self.who(Role.LIST_APPROVER), f"{self.study}/recalls"
        wanted = {"lot": "L0", "reason": "Seal broken"}
        recall = self.ask(supply, "POST", recalls, wanted, step_up=True).json()["recall_id"]
        self.ask(approver, "POST", f"{recalls}/{recall}/release", step_up=True)
        self.prove_anew(approver)
        for role in (Role.STUDY_ADMIN, Role.MONITOR, Role.INVESTIGATOR, Role.PHARMACIST, Role.INSPECTOR):
            self.tell(self.who(role), "GET", recalls)
        call_backs = f"{self.study}/sites/{self.site_code}/call-backs?limit=500"
        listed = self.tell(self.who(Role.PHARMACIST), "GET", call_backs).json()["items"]
        self.tell(self.who(Role.INVESTIGATOR), "GET", call_backs)
        self.tell(self.who(Role.PHARMACIST), "GET", f"{self.study}/sites/{self.site_code}/kits?limit=500")
        # In the order of the codes, which differs between twins: told by whose it is.
        handed_out = min((one["subject_id"], one["kit_code"]) for one in listed if one["to_do"] == "call_back")
        self.at_kit(handed_out[1], "return", reason="Called back")
        self.tell(self.who(Role.MONITOR), "POST", recalls, wanted)
        self.tell(self.who(Role.MONITOR), "POST", f"{recalls}/{recall}/release")

    def expire(self) -> None:
        """Come back when what is in stock has expired: nothing is handed out any more, and codes are broken as ever."""
        waiting = self.subject_id(self.protocol.planned_subjects)
        self.clock.advance(LONG_AFTER)
        for who in (self.admin, self.edc, *(person for held in self.people.values() for person in held)):
            assert who is not None
            who.token = ""
            if isinstance(who, Person):
                self.prove_anew(who)
        pharmacist = self.who(Role.PHARMACIST)
        kits = f"{self.study}/subjects/{waiting}/kits"
        code = self.tell(pharmacist, "GET", kits).json()["items"][0]["kit_code"]
        self.at_kit(code, "dispensation", subject_id=waiting, scanned_code=code)
        self.tell(pharmacist, "GET", f"{self.study}/sites/{self.site_code}/kits?limit=500")
        self.break_code(5)

    # -- people

    def administer(self) -> None:
        """Let somebody and a machine come, do everything wrong that one can with an account, and go."""
        admin, path = self.admin, f"/v1/people/{LEAVER}"
        issued = self.ask(admin, "POST", "/v1/people", person(LEAVER)).json()["password"]
        leaver = Person(LEAVER, issued, "", (Role.MONITOR,))
        granted = self.ask(admin, "POST", f"{path}/grants", {**self.role(Role.MONITOR), "needs_training": True}).json()
        self.tell(leaver, "GET", self.study)
        self.tell(leaver, "POST", "/v1/me/password", {"current": issued, "new": "short"})
        self.own(leaver, issued)
        self.tell(leaver, "GET", self.study)
        self.ask(admin, "POST", f"{path}/trainings", {"topic": "Blinding", "completed_on": "2026-11-01"})
        self.tell(leaver, "GET", self.study)
        self.tell(admin, "POST", f"{path}/grants", self.role(Role.MONITOR))
        self.tell(admin, "POST", f"{path}/grants", self.role(Role.STATISTICIAN))
        self.tell(leaver, "POST", "/v1/sessions/step-up", {"otp": "000000"})
        self.prove(leaver)
        self.know_a_device(leaver)
        self.use_a_passkey(leaver)
        session = self.ask(leaver, "GET", "/v1/me/sessions").json()["items"][0]
        self.ask(leaver, "DELETE", f"/v1/me/sessions/{session['session_id']}")
        leaver.token, leaver.stepped_up_at = "", None
        self.tell(leaver, "GET", "/v1/me")
        for _ in range(8):
            self.tell(None, "POST", "/v1/sessions", {"username": LEAVER, "password": "not this"})
        self.tell(admin, "GET", f"{path}/grants")
        self.ask(admin, "DELETE", f"{path}/grants/{granted['grant_id']}")
        self.tell(leaver, "GET", self.study)
        self.ask(leaver, "DELETE", "/v1/sessions/current")
        self.tell(leaver, "GET", "/v1/me")
        self.know_outsiders()
        self.ask(admin, "POST", f"{path}/reset")
        self.ask(admin, "POST", f"{path}/deactivation")
        self.tell(admin, "POST", "/v1/people/admin/deactivation")
        self.administer_machines()
        site = {"site_code": THIRD_SITE, "name": "Wuxi", "timezone": "Asia/Shanghai"}
        for body in (site, site, {**site, "name": "Changzhou"}):
            self.tell(self.who(Role.STUDY_ADMIN), "POST", f"{self.study}/sites", body, headers={"Idempotency-Key": "s"})
        self.tell(self.who(Role.STUDY_ADMIN), "POST", f"{self.study}/sites", site)
        self.tell(self.who(Role.MONITOR), "PUT", self.study)

    def know_a_device(self, who: Person) -> None:
        """Have somebody's device remembered, sign in with it, and end it."""
        self.wait_for_next_step(self.now())
        who.last_step = step_at(self.now())
        body = {"otp": code_of_step(who.totp_secret, who.last_step), "remember_device": True}
        secret = self.ask(who, "POST", "/v1/sessions/step-up", body).json()["device_secret"]
        body = {"username": who.username, "password": who.password}
        self.ask(None, "POST", "/v1/sessions", body, headers={"Snose-Device": secret})
        device = self.ask(who, "GET", "/v1/me/devices").json()["items"][0]
        for _ in range(2):
            self.tell(who, "DELETE", f"/v1/me/devices/{device['device_id']}")

    def use_a_passkey(self, who: Person) -> None:
        """Have somebody enrol a device, do with it all that can be done, right and wrong, and remove it."""
        device, path = Authenticator("of the script"), "/v1/me/passkeys"
        options = self.ask(who, "POST", f"{path}/challenge", step_up=True).json()["options"]
        made = {"name": "Phone", "credential": device.create(options)}
        passkey = self.ask(who, "POST", path, made, step_up=True).json()["passkey_id"]
        self.tell(who, "POST", path, made, step_up=True)
        self.ask(who, "GET", path)
        for holder, target in ((None, "/v1/sessions/passkey"), (who, "/v1/sessions/step-up/passkey")):
            options = self.ask(holder, "POST", "/v1/sessions/challenge", {}).json()["options"]
            signed = {"credential": device.get(options)}
            self.ask(holder, "POST", target, signed)
            self.tell(holder, "POST", target, signed)
        self.ask(who, "DELETE", f"{path}/{passkey}", step_up=True)
        self.tell(who, "DELETE", f"{path}/{passkey}", step_up=True)
        # With the passkey went every session but the one that removed it.
        who.token = ""
        self.ask(who, "GET", path)

    def know_outsiders(self) -> None:
        """Put an outside issuer in force by two administrators, link identities of its to accounts, and end all of it."""
        issued = self.ask(self.admin, "POST", "/v1/people", person(SECOND_ADMIN)).json()["password"]
        second = Person(SECOND_ADMIN, issued, "", (Role.SERVICE_ADMIN,))
        self.ask(self.admin, "POST", f"/v1/people/{SECOND_ADMIN}/grants", {"role": Role.SERVICE_ADMIN.value})
        self.own(second, issued)
        vouching = {"issuer": OUTSIDE, "audience": "snose", "jwks": {"keys": [SPARE_KEY]}}
        issuer = self.ask(self.admin, "POST", "/v1/issuers", vouching).json()["issuer_id"]
        self.tell(self.admin, "POST", f"/v1/issuers/{issuer}/confirmation", step_up=True)
        self.ask(second, "POST", f"/v1/issuers/{issuer}/confirmation", step_up=True)
        self.ask(self.admin, "GET", "/v1/issuers")
        links = []
        for name in (LEAVER, SECOND_ADMIN):
            body = {"issuer": OUTSIDE, "subject": name, "username": name}
            links.append(self.ask(self.admin, "POST", "/v1/identity-links", body).json()["link_id"])
        self.tell(self.admin, "POST", f"/v1/identity-links/{links[0]}/confirmation", step_up=True)
        self.ask(second, "POST", f"/v1/identity-links/{links[0]}/confirmation", step_up=True)
        self.ask(second, "POST", f"/v1/me/identity-links/{links[1]}/confirmation", step_up=True)
        self.ask(second, "GET", "/v1/me/identity-links")
        self.ask(self.admin, "GET", "/v1/identity-links")
        self.ask(self.admin, "DELETE", f"/v1/identity-links/{links[0]}")
        self.ask(self.admin, "DELETE", f"/v1/issuers/{issuer}")
        self.lose_a_device(second)
        self.ask(self.admin, "POST", f"/v1/people/{SECOND_ADMIN}/deactivation")

    def lose_a_device(self, who: Person) -> None:
        """Have somebody recover a second factor by the word of the administrator, and try it by that of others."""
        path = "/v1/factor-recoveries"
        asked = self.ask(None, "POST", path, {"username": who.username, "password": who.password}).json()
        finish = f"{path}/{asked['recovery_id']}/completion"
        body = {"username": who.username, "code": asked["code_for_colleague"], "identity_check": "call_back"}
        otp = code_of_step(asked["totp_secret"], step_at(self.now()))
        self.tell(None, "POST", finish, {"password": who.password, "otp": otp})
        for role in (Role.MONITOR, Role.INVESTIGATOR, Role.STUDY_ADMIN):
            self.tell(self.who(role), "POST", f"{path}/confirmation", body, step_up=True)
        self.ask(self.admin, "POST", f"{path}/confirmation", body, step_up=True)
        otp = code_of_step(asked["totp_secret"], step_at(self.now()))
        self.ask(None, "POST", finish, {"password": who.password, "otp": otp})

    def administer_machines(self) -> None:
        """Let a machine client come and go."""
        made = self.ask(self.admin, "POST", "/v1/clients", {"name": SPARE_CLIENT}).json()
        spare = Machine(made["client_id"], made["client_secret"], (Role.EDC_CLIENT,))
        path = f"/v1/clients/{spare.client_id}"
        granted = self.ask(self.admin, "POST", f"{path}/grants", self.role(Role.EDC_CLIENT)).json()
        self.tell(spare, "GET", f"{self.study}/allocations")
        self.tell(self.admin, "GET", f"{path}/grants")
        self.change_credentials(path)
        self.ask(self.admin, "DELETE", f"{path}/grants/{granted['grant_id']}")
        self.tell(spare, "GET", f"{self.study}/allocations")
        self.ask(self.admin, "POST", f"{path}/deactivation")
        self.tell(spare, "GET", f"{self.study}/allocations")

    def change_credentials(self, path: str) -> None:
        """Give a client what it proves itself with, and take it back."""
        issued = self.ask(self.admin, "POST", f"{path}/secrets", {"overlap_hours": 1}).json()
        self.ask(self.admin, "GET", f"{path}/secrets")
        self.ask(self.admin, "DELETE", f"{path}/secrets/{issued['fingerprint']}")
        added = self.ask(self.admin, "POST", f"{path}/keys", {"jwk": SPARE_KEY}).json()
        self.ask(self.admin, "GET", f"{path}/keys")
        self.ask(self.admin, "DELETE", f"{path}/keys/{added['key_id']}")

    def role(self, role: Role) -> dict[str, str]:
        return {"role": role.value, "study_code": self.protocol.study_code}

    # -- what fails

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Have the next transactions of the service fail like this, and no time be lost between its tries."""
        state = self.house.app.state
        kept = state.deployment
        with failing(self.house, *faults) as deployment, patch.object(audited, "_FIRST_PAUSE", 0):
            state.deployment = deployment
            try:
                yield
            finally:
                state.deployment = kept

    def fail_around(self, enrolled: int) -> int:
        """Have the database, the hashing of passwords and the sink fail, and return how many are enrolled after it."""
        coordinator, allocations = self.who(Role.COORDINATOR), f"{self.study}/allocations"
        for number, fault in enumerate((Fault.DOWN, Fault.LOST, Fault.UNHEARD, Fault.AGAIN), start=enrolled + 1):
            with self.failing(fault):
                self.allocate(coordinator, number)
            self.allocate(coordinator, number)
        with self.failing(Fault.LOST):
            self.tell(coordinator, "GET", allocations)
        with self.failing(), patch.object(answers, "claim", side_effect=TryAgain("55P03")):
            self.allocate(coordinator, 700)
        with ExitStack() as full:
            for _ in range(PLACES):
                full.enter_context(self.house.deployment.passwords.place())
            self.tell(None, "POST", "/v1/sessions", {"username": "admin", "password": "not this"})
        investigator = self.who(Role.INVESTIGATOR)
        self.prove_anew(investigator)
        with full_disk(self.house):
            body = {"subject_id": self.subject_id(3), "reason_code": "overdose"}
            self.tell(investigator, "POST", f"{self.study}/code-breaks", body, step_up=True)
            self.tell(self.admin, "POST", f"/v1/people/{LEAVER}/grants", self.role(Role.MONITOR))
            self.clock.advance(seconds=61)
            self.allocate(coordinator, 701)
            self.tell(coordinator, "GET", "/readyz")
        self.prove_anew(investigator)
        self.keep()
        self.tell(coordinator, "GET", "/readyz")
        return enrolled + 4

    def fail_inside(self, enrolled: int) -> None:
        """Have stored values of two subjects exchanged by a thief of the database's password, and a fault of our own."""
        one, other = self.subject_id(10), self.subject_id(11)
        column, binding = tables.allocation.c, tables.allocation.c.sealed_binding
        with self.house.deployment.database.transaction() as tx:
            lift_triggers(tx, "allocation")
            found = {
                name: tx.execute(select(binding).where(column.subject_id == name)).scalar_one() for name in (one, other)
            }
        investigator = self.who(Role.INVESTIGATOR)
        for bindings in ({one: found[other], other: found[one]}, found):
            with self.house.deployment.database.transaction() as tx:
                for name, sealed in bindings.items():
                    tx.execute(update(tables.allocation).where(column.subject_id == name).values(sealed_binding=sealed))
            self.tell(self.who(Role.PHARMACIST), "POST", f"{self.study}/subjects/{one}/kits", {"visit": "V30"})
            if bindings is not found:
                body = {"subject_id": one, "reason_code": "overdose"}
                self.tell(investigator, "POST", f"{self.study}/code-breaks", body, step_up=True)
        self.prove_anew(investigator)

        def fail(*_arguments: object) -> Iterator[Any]:
            raise ZeroDivisionError

        unforgiving = self.recorder._client
        self.recorder._client = self.house.client.forgiving()
        with patch.object(stock, "_in_random_order", fail):
            self.allocate(self.edc, enrolled + 1)
        self.recorder._client = unforgiving

    def lose_what_was_kept(self) -> None:
        """Have a log altered, another one longer in the sink than in the database, and the key gone: all stops but breaks."""
        coordinator, investigator = self.who(Role.COORDINATOR), self.who(Role.INVESTIGATOR)
        allocations = f"{self.study}/allocations"
        statement = {"statement": "The backup of 08:00 was restored; the EDC system was compared."}
        losses: tuple[Callable[[], None], ...] = (partial(alter_head, self.house), self.forget_the_end)
        for lose in losses:
            lose()
            self.tell(coordinator, "GET", allocations)
            self.tell(self.who(Role.MONITOR), "GET", f"{self.study}/trail")
            self.tell(None, "GET", "/readyz")
            self.prove_anew(investigator)
            body = {"subject_id": self.subject_id(6), "reason_code": "overdose"}
            self.ask(investigator, "POST", f"{self.study}/code-breaks", body, step_up=True)
            self.prove_anew(self.admin)
            self.ask(self.admin, "POST", "/v1/recovery-statements", statement, step_up=True)
            self.tell(coordinator, "GET", allocations)
        key = self.house.settings.key_file
        aside = key.with_suffix(".aside")
        key.rename(aside)
        self.reopen()
        self.tell(coordinator, "GET", allocations)
        self.tell(investigator, "POST", f"{self.study}/code-breaks", {})
        self.tell(None, "GET", "/readyz")
        aside.rename(key)
        self.reopen()

    def reopen(self) -> None:
        """Go on as a new process."""
        self.house.restart()
        self.recorder._client = self.house.client

    def forget_the_end(self) -> None:
        """Have the sink hold a checkpoint of more entries than the study's log has."""
        deployment = self.house.deployment
        sink = FileSink(self.house.settings.checkpoint_file)
        held = deployment.checkpoints.held()
        origin = max(origin for origin in held if self.protocol.study_code in origin)
        size, root = held[origin].size + 1000, base64.b64encode(bytes(32)).decode()
        note = deployment.signing.sign_note(f"{origin}\n{size}\n{root}\n")
        sink.append(SunkCheckpoint(origin, size, root, note, held[origin].at))
        deployment.checkpoints.compare(deployment.database)

    # -- the document

    def operations(self) -> list[Operation]:
        """Return every operation of the document, which is made once: this script is played on builds without a fault."""
        if not _documented:
            _documented.extend(operations_of(self.house.app.openapi()))
        return list(_documented)

    def known(self) -> dict[str, str]:
        """Return what stands in the places of a path's parameters: things that exist, and people nobody needs any more."""
        subject = self.subject_id(2)
        breaks = self.ask(self.who(Role.MONITOR), "GET", f"{self.study}/code-breaks").json()["items"]
        clients = [one.path for one in self.recorder.exchanges if one.path.startswith("/v1/clients/")]
        return {
            "study": self.protocol.study_code,
            "site": self.site_code,
            "subject": subject,
            "kit_code": self.kits_of(2)[0]["kit_code"],
            "schedule_id": self.first_list().rpartition("/")[2],
            "code": "C3",
            "code_break_id": breaks[0]["code_break_id"],
            "username": LEAVER,
            "client_id": clients[-1].split("/")[3],
            "index": "3",
            "passkey_id": "00000000-0000-4000-8000-000000000000",
        }

    def read_documented(self) -> None:
        """Read by every operation of the document that reads."""
        self._try_all([one for one in self.operations() if not one.is_act])

    def sweep(self) -> None:
        """Try every operation of the document."""
        # Whoever signs out cannot go on, so that comes last, and for the rest of the script they sign in anew.
        self._try_all(sorted(self.operations(), key=lambda one: (one.action is Action.SIGN_OUT, one.name)))
        for who in self.blinded():
            who.token = ""
            if isinstance(who, Person):
                who.stepped_up_at = None

    def _try_all(self, found: Sequence[Operation]) -> None:
        """Have each operation asked for by every blinded role that may, and by one that may not; all roles if thorough.

        What a role has asked for in the script so far, it need not ask for again.
        """
        known = self.known()
        people = {who.roles[0]: who for who in reversed(self.blinded()) if "elsewhere" not in name_of(who)}
        asked = self.asked()
        for turn, operation in enumerate(found):
            may = [who for role, who in people.items() if role in operation.entitled]
            others = [who for who in people.values() if who not in may]
            refused = [who for who in others if (who.roles[0].value, operation.name) in asked]
            chosen = [*may, *([] if refused else others[turn % len(others) :][:1])]
            for who in people.values() if self.thorough else chosen:
                if self.thorough or (who.roles[0].value, operation.name) not in asked:
                    self.try_out(who, operation, known)

    def asked(self) -> set[tuple[str, str]]:
        """Return which role has asked for which operation so far."""
        found = self.operations()
        return {
            (one.who.partition(" ")[0], operation.name)
            for one in self.recorder.exchanges
            if (operation := operation_at(found, one.method, one.path)) is not None
        }

    def try_out(self, who: Person | Machine, operation: Operation, known: Mapping[str, str]) -> None:
        """Send an operation as its examples have it, with a fresh proof where it wants one and its caller can have it."""
        step_up = operation.is_elevated and isinstance(who, Person) and who.roles[0] in operation.entitled
        if step_up:
            assert isinstance(who, Person)
            self.prove_anew(who)
        for media_type, example in operation.bodies.items() or [("", None)]:
            content = None if example is None else example if isinstance(example, str) else json.dumps(example)
            # Whole: which kits of many stand on the first page is as their codes have it, and those are chance.
            whole = "?limit=500" if operation.action is Action.READ_STOCK else ""
            response = self.tell(
                who,
                operation.method,
                f"{operation.at(known)}{whole}",
                step_up=step_up,
                headers={"Content-Type": media_type} if media_type else {},
                content=None if content is None else content.encode(),
            )
            if response.status_code == 401 and not operation.is_elevated:  # HTTP's own
                who.token = ""

    def play_what_is_left(self) -> None:
        """Have those entitled do what nobody has done yet, as its example shows it: a new operation joins by itself."""
        found, known = self.operations(), self.known()
        done = {
            operation.name
            for one in self.recorder.exchanges
            if one.status < 300 and (operation := operation_at(found, one.method, one.path)) is not None
        }
        everybody = [self.admin, *(held[0] for held in self.people.values()), self.edc]
        for operation in found:
            who = next((who for who in everybody if who is not None and who.roles[0] in operation.entitled), None)
            if operation.name not in done and who is not None:
                self.try_out(who, operation, known)


def person(username: str) -> dict[str, str]:
    return {"username": username, "display_name": "Somebody", "email": f"{username}@example.org"}
