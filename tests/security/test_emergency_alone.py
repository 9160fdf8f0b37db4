"""An emergency code break when everything else is down: one person, three inputs, and the treatment in the answer."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.alone import HANGING, REFUSING, Alone, alone
from tests.reliability import builds

SUBJECTS = ("S-1", "S-2", "S-3")
MAIL = {"postgresql": HANGING, "sqlite": REFUSING}


def opened(answer: httpx.Response) -> dict[str, Any]:
    """Return a break that holds its subject's treatment."""
    assert answer.status_code == httpx.codes.CREATED, answer.text
    made: dict[str, Any] = answer.json()
    assert made["treatment"] in {"Product A", "Product B"}
    return made


def test_everything_else_is_down(database_kind: str, database_url: str, tmp_path: Path) -> None:
    """No issuer, no mail, no other account, and a password at which no guess is looked at any more: one person opens every code

    with subject, reason and second factor, by a one-time code or a passkey; notices wait. [EUB-01, EUB-02, EUB-04, EUB-10,
    EUB-11, EUB-13, EUB-15, USR-10, USR-15]
    """
    workers = 2 if database_kind == "postgresql" else 1
    with alone(tmp_path, database_url, workers, SUBJECTS, MAIL[database_kind]) as person:
        assert person.attack.heard[httpx.codes.TOO_MANY_REQUESTS] > 0
        assert person.sign_in().status_code == httpx.codes.CREATED
        by_code = opened(person.break_by_code("S-1"))
        # A new sign-in, by the device alone: nothing there is to be guessed.
        assert person.sign_in_by_passkey().status_code == httpx.codes.CREATED
        by_passkey = {subject: opened(person.break_by_passkey(subject)) for subject in SUBJECTS}
        assert by_passkey["S-1"]["treatment"] == by_code["treatment"]
        # Another body than the one that was signed opens nothing: the three inputs are one.
        body, headers = person.signed_break("S-1")
        assert person.send_break({**body, "subject_id": "S-2"}, headers).status_code == httpx.codes.UNAUTHORIZED
        refused = person.client.get(f"/v1/studies/{person.study.code}", headers=machine(person))
        assert refused.status_code == httpx.codes.UNAUTHORIZED
        # The strangers went on all the time; none was let in.
        assert set(person.attack.heard) <= {401, 429, 503}
        if person.mail_server is not None:
            # Whoever sends the mails really waits there.
            person.mail_server.accept()[0].close()
        # One for each break, and one that there are unusually many.
        assert person.notices() == (1 + len(SUBJECTS) + 1, 0)


def machine(person: Alone) -> dict[str, str]:
    """Return the credentials of an account that is switched off like all the others."""
    return {"Authorization": f"Bearer {person.study.token}"}


@pytest.mark.long
@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_build_that_knows_no_device(database_url: str, tmp_path: Path) -> None:
    """The negative control: where an owner waits behind the strangers, whoever is alone does not get in [EUB-15]"""
    chosen = builds.chosen(tmp_path, "deaf to devices")
    with alone(tmp_path, database_url, 1, SUBJECTS[:1], REFUSING, chosen) as person:
        assert person.sign_in().status_code == httpx.codes.TOO_MANY_REQUESTS
