"""Passkeys: enrolled and removed by their owner; what they sign is a sign-in, a step-up, or a proof for one request."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from app.api.doors import Context, Door, digest_of
from app.api.people import StepUpRead
from app.api.schemas import Answer, Body, IdPath, Page, Text
from app.domain.words import Action
from app.services import passkeys

door = Door("People and clients")

_SIGNED: Final = {
    "id": "VGhlIGlkIG9mIGEga2V5",
    "rawId": "VGhlIGlkIG9mIGEga2V5",
    "type": "public-key",
    "response": {
        "clientDataJSON": "eyJ0eXBlIjoid2ViYXV0aG4uZ2V0Iiwib3JpZ2luIjoiaHR0cHM6Ly9zbm9zZS5leGFtcGxlLm9yZyJ9",
        "authenticatorData": "SZYN5YgOjGh0NBcPZHZgW4_krrmihjLHmVzzuoMdl2MFAAAAAQ",
        "signature": "MEQCIBRGDvJf8hV6qvHsSl0",
        "userHandle": "P0ybXm8OTF6aWT0cak8rEA",
    },
    "clientExtensionResults": {},
}
_MADE: Final = {
    **{name: value for name, value in _SIGNED.items() if name != "response"},
    "response": {
        "clientDataJSON": "eyJ0eXBlIjoid2ViYXV0aG4uY3JlYXRlIiwib3JpZ2luIjoiaHR0cHM6Ly9zbm9zZS5leGFtcGxlLm9yZyJ9",
        "attestationObject": "o2NmbXRkbm9uZWdhdHRTdG10oGhhdXRoRGF0YVjE",
    },
}
_OPTIONS: Final = {"challenge": "AAY7sKn2kZ8", "rpId": "snose.example.org", "userVerification": "required"}
Signed = Annotated[
    dict[str, Any], Field(examples=[_SIGNED], description="what `PublicKeyCredential.toJSON()` gives in a browser")
]


class BoundRequest(Body):
    """The one request that a passkey is asked to sign, exactly as it will be sent."""

    method: Literal["GET", "POST", "DELETE"] = Field(examples=["POST"])
    path: Annotated[str, StringConstraints(pattern=r"^/[!-~]{0,499}$")] = Field(
        examples=["/v1/studies/NCT03033277/code-breaks"], description="with its query, where it has one"
    )
    body: dict[str, Any] | list[Any] | None = Field(
        default=None,
        examples=[{"subject_id": "01-0007", "reason_code": "serious_adverse_event"}],
        description="its JSON body; spaces and the order of names do not matter",
    )


class ChallengeRequest(Body):
    """What the challenge is for: one request, or without one a step-up (with a token) or a sign-in (without)."""

    request: BoundRequest | None = None


class ChallengeRead(Answer):
    """What the browser's `navigator.credentials` takes."""

    options: dict[str, Any] = Field(examples=[_OPTIONS], description="good once, for five minutes")


class SignedRequest(Body):
    """What the person's own device has signed."""

    credential: Signed


class PasskeyRequest(Body):
    """A new passkey, and what its owner calls it."""

    name: Annotated[Text, Field(examples=["Phone of the ward"])]
    credential: Annotated[
        dict[str, Any], Field(examples=[_MADE], description="what `PublicKeyCredential.toJSON()` gives in a browser")
    ]


class PasskeyRead(Answer):
    """A passkey, as its owner sees it."""

    passkey_id: UUID = Field(examples=["3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"])
    name: str = Field(examples=["Phone of the ward"])
    created_at: datetime
    last_used_at: datetime | None


class PasskeySessionRead(StepUpRead):
    """A session by passkey, which is a fresh second proof too."""


@door.post("/sessions/challenge", Action.CHALLENGE_PASSKEY)
def challenge_passkey(body: ChallengeRequest, ctx: Context) -> ChallengeRead:
    """Get a challenge for a passkey to sign."""
    named = body.request
    digest = None if named is None else digest_of(named.method, named.path, named.body)
    return ChallengeRead(options=dict(passkeys.challenge(ctx, digest)))


@door.post("/sessions/passkey", Action.SIGN_IN, 201)
def sign_in_by_passkey(body: SignedRequest, ctx: Context) -> PasskeySessionRead:
    """Sign in with a passkey alone."""
    return PasskeySessionRead.of(passkeys.sign_in(ctx, body.credential))


@door.post("/sessions/step-up/passkey", Action.STEP_UP, 201)
def step_up_by_passkey(body: SignedRequest, ctx: Context) -> PasskeySessionRead:
    """Give a fresh second proof with a passkey."""
    return PasskeySessionRead.of(passkeys.step_up(ctx, body.credential))


@door.post("/me/passkeys/challenge", Action.BEGIN_PASSKEY)
def begin_passkey(ctx: Context) -> ChallengeRead:
    """Get what my device needs to make a passkey."""
    return ChallengeRead(options=dict(passkeys.begin(ctx)))


@door.post("/me/passkeys", Action.ADD_PASSKEY, 201)
def add_passkey(body: PasskeyRequest, ctx: Context) -> PasskeyRead:
    """Enrol a passkey that my device has made."""
    return PasskeyRead.of(passkeys.add(ctx, body.name, body.credential))


@door.get("/me/passkeys", Action.LIST_PASSKEYS)
def list_passkeys(ctx: Context) -> Page[PasskeyRead]:
    """List my passkeys."""
    return Page(items=[PasskeyRead.of(one) for one in passkeys.list_own(ctx)], next_cursor=None)


@door.delete("/me/passkeys/{passkey_id}", Action.REMOVE_PASSKEY)
def remove_passkey(passkey_id: IdPath, ctx: Context) -> None:
    """Remove one of my passkeys; my other sessions end."""
    passkeys.remove(ctx, UUID(passkey_id))
