"""Accounts, sign-in, the second proof, machine clients, grants."""

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, unquote_plus
from uuid import UUID

from fastapi import Depends, Header, Path, Query, Request
from pydantic import Field, StringConstraints
from starlette.responses import JSONResponse, Response

from app.api.doors import Context, Door
from app.api.schemas import (
    Answer,
    Body,
    Cursor,
    Day,
    IdPath,
    Limit,
    Moment,
    Page,
    SiteCodeField,
    StudyCodeField,
    StudyPath,
    Text,
    Time,
)
from app.domain.words import Action, Role, SiteCode, StudyCode, Username
from app.errors import WrongCredentials
from app.services import people
from app.services.context import RequestContext
from app.services.people import ASSERTION_TYPE, Holder, NewTraining, Terms, WaitingGrant
from app.services.sessions import SignedIn

door = Door("People and clients")
token_door = Door("People and clients", prefix="")

_LONG: Final = 200
Secret = Annotated[str, StringConstraints(min_length=1, max_length=_LONG)]
OneTimeCode = Annotated[str, StringConstraints(min_length=1, max_length=20)]
UsernamePath = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{1,39}$", examples=["m.rossi"])]
ClientPath = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{1,39}$", examples=["client-mzxw6ytboi7dcmrt"])]


class SignInRequest(Body):
    """A person's user name, in any case, and password."""

    username: Annotated[Secret, Field(examples=["m.rossi"])]
    password: Annotated[Secret, Field(examples=["seven quiet herons at dawn"])]
    otp: Annotated[
        OneTimeCode | None,
        Field(
            description="A code of the person's own device, used up by it. Needed only where strangers try the same name "
            "(429, or 503 `busy`): with it the try is counted apart from theirs, and a place is kept for it.",
            examples=["492039"],
        ),
    ] = None


class StepUpRequest(Body):
    """The one-time code that the person's own device shows now."""

    otp: Annotated[OneTimeCode, Field(examples=["492039"])]
    remember_device: Annotated[
        bool, Field(description="whether this device is to be known at the next sign-ins", examples=[False])
    ] = False


class SessionRead(Answer):
    """A session by password."""

    access_token: str = Field(examples=["snose_4Jc0m5s3y2mXn1QeJb3yq2mC8wq0K7r5m1m1l6yJ8sA"])
    expires_in: int = Field(examples=[28800], description="seconds")
    acr: str = Field(examples=["pwd"])


class StepUpRead(SessionRead):
    """A session with a fresh second proof."""

    auth_time: datetime = Field(examples=["2026-11-22T09:14:03+00:00"], description="when the proof was given")
    acr: str = Field(examples=["mfa"])


class CodeStepUpRead(StepUpRead):
    """A session with a fresh second proof, and what makes the device known."""

    device_secret: str | None = Field(
        examples=[None],
        description="where `remember_device` asked for it: to be kept on this device and sent as `Snose-Device`; shown once",
    )


class MySessionRead(Answer):
    """A sign-in of one's own that is not over, with every token that was stepped up from it."""

    session_id: UUID
    is_current: bool = Field(examples=[True], description="the one of this request")
    signed_in_at: datetime = Field(examples=["2026-11-22T08:59:40+00:00"])
    used_at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"], description="last act, to the minute")
    ends_at: datetime = Field(examples=["2026-11-22T16:59:40+00:00"], description="whatever is done until then")
    proof_at: datetime | None = Field(examples=["2026-11-22T09:14:03+00:00"], description="last second proof")


class PasswordRequest(Body):
    """The present password and its successor."""

    current: Annotated[Secret, Field(examples=["7KQ2M-XN4RT-9WBVH-3FDPC"])]
    new: Annotated[Secret, Field(examples=["seven quiet herons at dawn"])]


class PasswordRead(Answer):
    """The person's own second factor after the first change; null after later ones."""

    totp_secret: str | None = Field(
        examples=["JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"], description="base32; SHA-1, 6 digits, 30 s; shown once"
    )


class ProofRead(Answer):
    """The second proof of the session."""

    at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"])
    age_seconds: int = Field(examples=[42])
    spent: bool = Field(examples=[False], description="an act that reveals has used it up")


class HeldGrantRead(Answer):
    """A role that is held now."""

    role: str = Field(examples=["investigator"])
    study_code: str | None = Field(examples=["NCT03033277"])
    site_code: str | None = Field(examples=["01"])


class MeRead(Answer):
    """Who is asking."""

    username: str = Field(examples=["m.rossi"])
    display_name: str = Field(examples=["Dr Maria Rossi"])
    is_machine: bool = Field(examples=[False])
    acr: str = Field(examples=["mfa"], description="`pwd`, `mfa`, or `client` for a machine")
    proof: ProofRead | None
    must_change_password: bool = Field(examples=[False])
    password_expired: bool = Field(examples=[False])
    grants: list[HeldGrantRead]


class PersonRequest(Body):
    """A new person."""

    username: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{1,39}$"), Field(examples=["m.rossi"])]
    display_name: Annotated[Text, Field(examples=["Dr Maria Rossi"])]
    email: Annotated[Text, Field(pattern=r"^[^@\s]+@[^@\s]+$", examples=["m.rossi@example.org"])]


def _is_nothing(some: list[Any] | bool) -> bool:
    return not some


class IssuedPersonRead(Answer):
    """A one-time password, to be replaced at the first sign-in."""

    username: str = Field(examples=["m.rossi"])
    password: str = Field(examples=["7KQ2M-XN4RT-9WBVH-3FDPC"], description="shown once")
    needs_colleague: bool = Field(
        default=False,
        exclude_if=_is_nothing,
        examples=[True],
        description="the next second factor takes a colleague (`POST /v1/factor-recoveries`); left out when it does not",
    )


class PersonRead(Answer):
    """A person's account."""

    username: str = Field(validation_alias="name", examples=["m.rossi"])
    display_name: str = Field(examples=["Dr Maria Rossi"])
    email: str | None = Field(examples=["m.rossi@example.org"])
    is_active: bool = Field(examples=[True])
    created_at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"])


class GrantRequest(Body):
    """A role and where it is held."""

    role: Annotated[Role, Field(strict=False, examples=["investigator"])]
    study_code: Annotated[StudyCodeField | None, Field(examples=["NCT03033277"])] = None
    site_code: Annotated[SiteCodeField | None, Field(examples=["01"])] = None
    starts_at: Annotated[
        Moment | None, Field(strict=False, description="not effective before; at once, when left out", examples=[None])
    ] = None
    ends_at: Annotated[
        Moment | None,
        Field(
            strict=False,
            description="from then on good for an emergency code break only, and entered as such",
            examples=[None],
        ),
    ] = None
    needs_training: Annotated[
        bool,
        Field(description="effective only while a training for the study is on record and valid", examples=[False]),
    ] = False


class TrainingRequest(Body):
    """A training that a person has completed."""

    topic: Annotated[Text, Field(examples=["Protocol 2.1 and emergency unblinding"])]
    completed_on: Annotated[Day, Field(examples=["2026-11-20"])]
    valid_until: Annotated[
        Day | None, Field(description="its last day; for good, when left out", examples=["2027-11-20"])
    ] = None
    study_code: Annotated[StudyCodeField | None, Field(description="for every study, when left out")] = None


class TrainingCreated(Answer):
    """The training on record."""

    training_id: str


class TrainingRead(Answer):
    """A training as it was recorded."""

    training_id: UUID
    topic: str = Field(examples=["Protocol 2.1 and emergency unblinding"])
    study_code: str | None
    completed_on: date = Field(examples=["2026-11-20"])
    valid_until: date | None = Field(examples=["2027-11-20"])
    recorded_at: datetime
    recorded_by: str = Field(examples=["admin"])


class GrantCreated(Answer):
    """The new grant."""

    grant_id: str = Field(examples=["3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"])


class GrantPending(GrantCreated):
    """What is asked for, and opens nothing until another service administrator has confirmed it."""

    status: str = Field(default="pending", examples=["pending"])


class GrantRead(HeldGrantRead):
    """A grant with its history."""

    grant_id: UUID
    granted_at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"])
    granted_by: str = Field(examples=["admin"])
    starts_at: datetime | None = Field(examples=[None])
    ends_at: datetime | None = Field(examples=[None])
    needs_training: bool | None = Field(examples=[None])
    revoked_at: datetime | None = Field(examples=[None])
    revoked_by: str | None = Field(examples=[None])


class PendingGrantRead(HeldGrantRead):
    """A grant that waits for another service administrator."""

    grant_id: UUID
    requested_at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"])
    requested_by: str = Field(examples=["admin"])
    expires_at: datetime = Field(
        examples=["2026-11-29T09:14:03+00:00"], description="not confirmed any more from then on"
    )
    starts_at: datetime | None = Field(examples=[None])
    ends_at: datetime | None = Field(examples=[None])
    needs_training: bool = Field(examples=[False])


class GrantsRead(Page[GrantRead]):
    """The grants of a person, and those that wait for another service administrator."""

    pending: list[PendingGrantRead] = Field(
        default_factory=list, exclude_if=_is_nothing, description="left out when nothing waits"
    )


class DelegationRead(Answer):
    """A line of the delegation log."""

    grant_id: UUID
    username: str = Field(validation_alias="name", examples=["m.rossi"], description="a machine's client id")
    display_name: str = Field(examples=["Dr Maria Rossi"])
    is_machine: bool = Field(examples=[False])
    role: str = Field(examples=["investigator"])
    site_code: str | None = Field(examples=["01"])
    starts_at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"])
    ends_at: datetime | None = Field(examples=[None])
    granted_at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"])
    granted_by: str = Field(examples=["admin"])
    revoked_at: datetime | None = Field(examples=[None])
    revoked_by: str | None = Field(examples=[None])
    deactivated_at: datetime | None = Field(examples=[None], description="when the account was switched off")


class DelegationsRead(Page[DelegationRead]):
    """A page of the delegation log, and when the access of those in it is to be reviewed."""

    access_review_due_at: Time = Field(examples=["2027-05-21T09:14:03+00:00"])
    is_access_review_overdue: bool = Field(examples=[False])


class ClientRequest(Body):
    """A new machine client."""

    name: Annotated[Text, Field(examples=["EDC production"])]


class IssuedClientRead(Answer):
    """A machine client's credentials."""

    client_id: str = Field(examples=["client-mzxw6ytboi7dcmrt"])
    client_secret: str = Field(
        examples=["snose_client_4Jc0m5s3y2mXn1QeJb3yq2mC8wq0K7r5m1m1l6yJ8sA"], description="shown once"
    )


class ClientRead(Answer):
    """A machine client's account."""

    client_id: str = Field(validation_alias="name", examples=["client-mzxw6ytboi7dcmrt"])
    name: str = Field(validation_alias="display_name", examples=["EDC production"])
    is_active: bool = Field(examples=[False])
    created_at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"])


At = Annotated[
    Moment | Day | None,
    Query(
        union_mode="left_to_right",
        description="held on a day (at its end, in UTC) or at a moment; all that nobody has revoked, when left out",
    ),
]
LogAt = Annotated[
    Moment | Day | None,
    Query(
        union_mode="left_to_right",
        description="who could do what on a day (at its end, in UTC) or at a moment; the whole log, when left out",
    ),
]


def _moment(at: datetime | date | None) -> datetime | None:
    """Return the moment that is meant: a day ends with its last instant in UTC."""
    if at is None or isinstance(at, datetime):
        return at
    return datetime.combine(at, time.max, UTC)


# -- sign-in ---------------------------------------------------------------------------------------------------------


DeviceSecret = Annotated[
    str | None,
    Header(
        alias="Snose-Device",
        max_length=_LONG,
        description="The secret of a known device: the try is counted apart from strangers', and a place is kept for it.",
    ),
]


@door.post("/sessions", Action.SIGN_IN, 201)
def sign_in(body: SignInRequest, ctx: Context, device: DeviceSecret = None) -> SessionRead:
    """Sign in with a password."""
    return SessionRead.of(people.sign_in(ctx, body.username, body.password, body.otp, device))


@door.post("/sessions/step-up", Action.STEP_UP, 201)
def step_up(body: StepUpRequest, ctx: Context) -> CodeStepUpRead:
    """Give a fresh second proof with a one-time code."""
    return CodeStepUpRead.of(people.step_up(ctx, body.otp, remember_device=body.remember_device))


@door.delete("/sessions/current", Action.SIGN_OUT)
def sign_out(ctx: Context) -> None:
    """Sign out."""
    people.sign_out(ctx)


@door.get("/me/sessions", Action.LIST_SESSIONS)
def list_sessions(ctx: Context) -> Page[MySessionRead]:
    """List my sign-ins that are not over."""
    return Page(items=[MySessionRead.of(session) for session in people.list_sessions(ctx)], next_cursor=None)


@door.delete("/me/sessions/{session_id}", Action.SIGN_OUT)
def end_session(session_id: IdPath, ctx: Context) -> None:
    """End one of my sign-ins."""
    people.sign_out(ctx, UUID(session_id))


@door.delete("/me/sessions", Action.SIGN_OUT)
def end_sessions(ctx: Context) -> None:
    """End all my sign-ins, this one too."""
    people.sign_out_everywhere(ctx)


@door.get("/me", Action.READ_SELF)
def read_self(ctx: Context) -> MeRead:
    """Read who I am, what I may do and how fresh my proof is."""
    return MeRead.of(people.read_self(ctx))


@door.post("/me/password", Action.CHANGE_PASSWORD)
def change_password(body: PasswordRequest, ctx: Context) -> PasswordRead:
    """Change my password; the first change gives my second factor."""
    return PasswordRead.of(people.change_password(ctx, body.current, body.new))


# -- accounts --------------------------------------------------------------------------------------------------------


@door.post("/people", Action.REGISTER_PERSON, 201)
def register_person(body: PersonRequest, ctx: Context) -> IssuedPersonRead:
    """Register a person."""
    return IssuedPersonRead.of(people.register_person(ctx, body.username, body.display_name, body.email))


@door.get("/people", Action.LIST_PEOPLE)
def list_people(ctx: Context, limit: Limit = 100, cursor: Cursor = None) -> Page[PersonRead]:
    """List people by user name."""
    page = people.list_people(ctx, limit, cursor)
    return Page(items=[PersonRead.of(person) for person in page.items], next_cursor=page.next_cursor)


@door.post("/people/{username}/deactivation", Action.DEACTIVATE_PERSON)
def deactivate_person(username: UsernamePath, ctx: Context) -> PersonRead:
    """Switch a person's account off."""
    return PersonRead.of(people.deactivate(ctx, Holder(username, is_machine=False)))


@door.post("/people/{username}/reset", Action.RESET_PERSON)
def reset_person(username: UsernamePath, ctx: Context) -> IssuedPersonRead:
    """Issue a one-time password after a loss; password, second factor and sessions are void."""
    return IssuedPersonRead.of(people.reset(ctx, Username(username)))


@door.delete("/people/{username}/sessions", Action.END_SESSIONS)
def end_sessions_of_person(username: UsernamePath, ctx: Context) -> None:
    """End all sign-ins of a person, who may sign in again."""
    people.end_sessions(ctx, Username(username))


@door.post(
    "/people/{username}/grants",
    Action.GRANT_ROLE,
    201,
    response_model=GrantCreated,
    responses={202: {"model": GrantPending}},
)
def grant_role(username: UsernamePath, body: GrantRequest, ctx: Context) -> GrantCreated | Response:
    """Grant a role to a person."""
    made = _granted(ctx, Holder(username, is_machine=False), body)
    return JSONResponse(made.model_dump(), 202) if isinstance(made, GrantPending) else made


@door.post("/people/{username}/grants/{grant_id}/confirmation", Action.CONFIRM_GRANT)
def confirm_grant(username: UsernamePath, grant_id: IdPath, ctx: Context) -> GrantCreated:
    """Confirm a grant that another administrator has asked for."""
    confirmed = people.confirm_grant(ctx, Holder(username, is_machine=False), UUID(grant_id))
    return GrantCreated(grant_id=str(confirmed))


@door.get("/people/{username}/grants", Action.LIST_GRANTS)
def list_grants(username: UsernamePath, ctx: Context, at: At = None) -> GrantsRead:
    """List the grants that a person held at a time."""
    grants = people.list_grants(ctx, Holder(username, is_machine=False), _moment(at))
    pending = [PendingGrantRead.of(one) for one in grants.pending]
    return GrantsRead(items=[GrantRead.of(grant) for grant in grants.items], next_cursor=None, pending=pending)


@door.delete("/people/{username}/grants/{grant_id}", Action.REVOKE_GRANT)
def revoke_grant(username: UsernamePath, grant_id: IdPath, ctx: Context) -> None:
    """Revoke a person's grant, effective at once, or withdraw one that waits."""
    people.revoke_grant(ctx, Holder(username, is_machine=False), UUID(grant_id))


@door.post("/people/{username}/trainings", Action.RECORD_TRAINING, 201)
def record_training(username: UsernamePath, body: TrainingRequest, ctx: Context) -> TrainingCreated:
    """Record a training that a person has completed."""
    study_code = StudyCode(body.study_code) if body.study_code is not None else None
    new = NewTraining(body.topic, body.completed_on, body.valid_until, study_code)
    return TrainingCreated(training_id=str(people.record_training(ctx, Username(username), new)))


@door.get("/people/{username}/trainings", Action.LIST_TRAININGS)
def list_trainings(username: UsernamePath, ctx: Context) -> Page[TrainingRead]:
    """List the trainings of a person."""
    trainings = people.list_trainings(ctx, Username(username))
    return Page(items=[TrainingRead.of(training) for training in trainings], next_cursor=None)


@door.get("/studies/{study}/delegations", Action.READ_DELEGATIONS)
def list_delegations(
    study: StudyPath, ctx: Context, at: LogAt = None, limit: Limit = 100, cursor: Cursor = None
) -> DelegationsRead:
    """Read the delegation log of the study."""
    return DelegationsRead.of(people.list_delegations(ctx, StudyCode(study), _moment(at), limit, cursor))


@door.post("/clients", Action.REGISTER_CLIENT, 201)
def register_client(body: ClientRequest, ctx: Context) -> IssuedClientRead:
    """Register a machine client."""
    return IssuedClientRead.of(people.register_client(ctx, body.name))


@door.post("/clients/{client_id}/deactivation", Action.DEACTIVATE_PERSON)
def deactivate_client(client_id: ClientPath, ctx: Context) -> ClientRead:
    """Switch a machine client off."""
    return ClientRead.of(people.deactivate(ctx, Holder(client_id, is_machine=True)))


_MACHINE_GRANT: Final = {"role": "edc_client", "study_code": "NCT03033277", "site_code": None}


@door.post(
    "/clients/{client_id}/grants",
    Action.GRANT_ROLE,
    201,
    openapi_extra={"requestBody": {"content": {"application/json": {"example": _MACHINE_GRANT}}}},
)
def grant_client_role(client_id: ClientPath, body: GrantRequest, ctx: Context) -> GrantCreated:
    """Grant a role to a machine client."""
    return _granted(ctx, Holder(client_id, is_machine=True), body)


@door.get("/clients/{client_id}/grants", Action.LIST_GRANTS)
def list_client_grants(client_id: ClientPath, ctx: Context, at: At = None) -> Page[GrantRead]:
    """List the grants that a machine client held at a time."""
    grants = people.list_grants(ctx, Holder(client_id, is_machine=True), _moment(at))
    return Page(items=[GrantRead.of(grant) for grant in grants.items], next_cursor=None)


@door.delete("/clients/{client_id}/grants/{grant_id}", Action.REVOKE_GRANT)
def revoke_client_grant(client_id: ClientPath, grant_id: IdPath, ctx: Context) -> None:
    """Revoke a machine client's grant, effective at once."""
    people.revoke_grant(ctx, Holder(client_id, is_machine=True), UUID(grant_id))


def _granted(ctx: Context, holder: Holder, body: GrantRequest) -> GrantCreated:
    study_code = StudyCode(body.study_code) if body.study_code is not None else None
    site_code = SiteCode(body.site_code) if body.site_code is not None else None
    terms = Terms(body.starts_at, body.ends_at, body.needs_training)
    made = people.grant_role(ctx, holder, body.role, study_code, site_code, terms)
    if isinstance(made, WaitingGrant):
        return GrantPending(grant_id=str(made.grant_id))
    return GrantCreated(grant_id=str(made))


# -- OAuth 2.0 client credentials (RFC 6749, 4.4) ---------------------------------------------------------------------


class TokenRead(Answer):
    """An access token of a machine client (RFC 6749, 5.1). It is opaque, so that it can be revoked at once."""

    access_token: str = Field(examples=["snose_4Jc0m5s3y2mXn1QeJb3yq2mC8wq0K7r5m1m1l6yJ8sA"])
    token_type: str = Field(examples=["Bearer"])
    expires_in: int = Field(examples=[1800], description="seconds")


class TokenProblem(Answer):
    """An error of RFC 6749, 5.2."""

    error: str = Field(examples=["invalid_client"])


_FORM: Final = "application/x-www-form-urlencoded"
_TOKEN_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            _FORM: {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {
                        "grant_type": {"type": "string", "const": "client_credentials"},
                        "client_id": {"type": "string"},
                        "client_secret": {"type": "string"},
                        "client_assertion_type": {"type": "string", "const": ASSERTION_TYPE},
                        "client_assertion": {"type": "string", "description": "instead of a secret (RFC 7523)"},
                    },
                },
                "example": {
                    "grant_type": "client_credentials",
                    "client_id": "client-mzxw6ytboi7dcmrt",
                    "client_secret": "snose_client_4Jc0m5s3y2mXn1QeJb3yq2mC8wq0K7r5m1m1l6yJ8sA",
                },
            }
        },
    },
    "security": [{"basic": []}, {}],
}


_TOKEN_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {
        "model": TokenProblem,
        "description": text,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "x-own": True,
    }
    for status, text in (
        (400, "An error of RFC 6749, 5.2; a problem where the body is no form at all"),
        (401, "An error of RFC 6749, 5.2"),
    )
}
"""What OAuth libraries read; the rest speaks RFC 9457 here too."""


async def _form_of(request: Request) -> Mapping[str, list[str]]:
    """Return the fields of the form. The framework's own form model cannot tell a field that was sent twice."""
    fields: dict[str, list[str]] = {}
    text = (await request.body()).decode("utf-8", "replace")
    for name, value in parse_qsl(text, keep_blank_values=True):
        fields.setdefault(name, []).append(value)
    return fields


TokenForm = Annotated[Mapping[str, list[str]], Depends(_form_of)]


@token_door.post(
    "/oauth2/token",
    Action.ISSUE_TOKEN,
    media_types=(_FORM,),
    openapi_extra=_TOKEN_REQUEST,
    response_model=TokenRead,
    responses=_TOKEN_PROBLEMS,
)
def issue_token(form: TokenForm, request: Request, ctx: Context) -> Response:
    """Get an access token for a machine client."""
    if any(len(values) > 1 for values in form.values()) or "grant_type" not in form:
        return _token_problem(400, "invalid_request")
    if form["grant_type"] != ["client_credentials"]:
        return _token_problem(400, "unsupported_grant_type")
    issue = _proof_of(form, request.headers.get("authorization"))
    if isinstance(issue, Response):
        return issue
    try:
        issued = issue(ctx)
    except WrongCredentials:
        # This one route speaks RFC 6749 and not RFC 9457, because its clients are OAuth libraries.
        return _token_problem(401, "invalid_client")
    return JSONResponse({"access_token": issued.access_token, "token_type": "Bearer", "expires_in": issued.expires_in})


def _proof_of(form: Mapping[str, list[str]], header: str | None) -> Callable[[RequestContext], SignedIn] | Response:
    """Return what issues the token: by a signed assertion or by a secret, and never by both (RFC 6749, 2.3; RFC 7521, 4.2)."""
    if form.keys().isdisjoint({"client_assertion", "client_assertion_type"}):
        credentials = _credentials_of(form, header)
        if isinstance(credentials, Response):
            return credentials
        client_id, secret = credentials
        return lambda ctx: people.issue_token(ctx, client_id, secret)
    if header is not None or "client_secret" in form or form.get("client_assertion_type") != [ASSERTION_TYPE]:
        return _token_problem(400, "invalid_request")
    assertion = form.get("client_assertion", [""])[0]
    named = form["client_id"][0][:_LONG] if "client_id" in form else None
    return lambda ctx: people.issue_token_to_key(ctx, named, assertion)


def _credentials_of(form: Mapping[str, list[str]], header: str | None) -> tuple[str, str] | Response:
    """Return client id and secret, by HTTP Basic or by the form and never by both (RFC 6749, 2.3)."""
    if header is None:
        if "client_id" in form and "client_secret" in form:
            return form["client_id"][0][:_LONG], form["client_secret"][0][:_LONG]
        return _token_problem(401, "invalid_client")
    scheme, _, encoded = header.partition(" ")
    if "client_secret" in form:
        return _token_problem(400, "invalid_request")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        text = ""
    client_id, colon, secret = text.partition(":")
    if scheme.lower() != "basic" or not colon:
        return _token_problem(401, "invalid_client")
    return unquote_plus(client_id)[:_LONG], unquote_plus(secret)[:_LONG]


def _token_problem(status: int, error: str) -> Response:
    headers = {"WWW-Authenticate": 'Basic realm="snose"'} if status == 401 else {}  # noqa: PLR2004  # the one status with a challenge
    return JSONResponse({"error": error}, status, headers)
