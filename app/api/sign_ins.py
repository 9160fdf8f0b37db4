"""Sign-in of people at an OpenID provider."""

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from app.api.doors import Context, Door
from app.api.issuers import IssuerField
from app.api.people import SessionRead
from app.api.schemas import Answer, Body
from app.domain.words import Action
from app.services import sign_ins

door = Door("People and clients")

_KEY: Final = "eyJhdCI6ICIyMDI2LTExLTIzIn0=.4Jc0m5s3y2mXn1QeJb3yq2mC8wq0K7r5m1m1l6yJ8sA"
_URL: Final = "https://login.hospital.example/realms/trials/protocol/openid-connect/auth?response_type=code"
Brought = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,4096}$")]


class ProviderSignInRequest(Body):
    """At which provider a person signs in, and where the browser comes back to."""

    issuer: IssuerField
    redirect_uri: Annotated[
        str, StringConstraints(pattern=r"^https?://[!-~]{1,480}$"), Field(examples=["http://127.0.0.1:49152/"])
    ]
    step_up: Annotated[bool, Field(examples=[False], description="ask for a second proof there, given anew")] = False


class ProviderSignInRead(Answer):
    """A sign-in that has begun."""

    authorization_url: str = Field(examples=[_URL], description="to be opened in the person's browser")
    sign_in_key: str = Field(examples=[_KEY], description="completes it, once, within ten minutes; show it to nobody")


class CompletionRequest(Body):
    """What the browser has brought back, with the key of the sign-in."""

    sign_in_key: Annotated[Brought, Field(examples=[_KEY])]
    code: Annotated[Brought, Field(examples=["SplxlOBeZQQYbYS6WxSbIA"])]
    state: Annotated[Brought, Field(examples=["af0ifjsldkj"])]
    iss: Annotated[Brought | None, Field(examples=[None], description="if the provider names itself (RFC 9207)")] = None


@door.post("/sign-ins", Action.BEGIN_SIGN_IN, 201)
def begin_sign_in(body: ProviderSignInRequest, ctx: Context) -> ProviderSignInRead:
    """Begin a sign-in at an OpenID provider."""
    return ProviderSignInRead.of(sign_ins.begin(ctx, body.issuer, body.redirect_uri, step_up=body.step_up))


@door.post("/sign-ins/completion", Action.SIGN_IN, 201)
def complete_sign_in(body: CompletionRequest, ctx: Context) -> SessionRead:
    """Complete a sign-in at an OpenID provider; a second proof given there makes the session `mfa`."""
    return SessionRead.of(sign_ins.complete(ctx, body.sign_in_key, body.code, body.state, body.iss))
