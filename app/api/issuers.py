"""Outside issuers of tokens, and the identities that stand for people and machines here."""

from datetime import datetime
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator

from app.api.doors import Context, Door
from app.api.schemas import Answer, Body, IdPath, Page, Text
from app.domain.words import Action
from app.services import issuers
from app.services.issuers import NewClient, NewIssuer
from app.services.people import Holder

door = Door("People and clients")

_ISSUER: Final = "https://login.hospital.example/realms/trials"
_ID: Final = "3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"
IssuerField = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]{1,240}$"), Field(examples=[_ISSUER])]
Short = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,255}$")]
Account = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{1,39}$")]


class JwksField(Body):
    """The issuer's public keys (RFC 7517)."""

    keys: list[dict[str, Any]] = Field(
        examples=[[{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]]
    )


class ClientField(Body):
    """As whom the service is registered at the provider."""

    client_id: Annotated[Short, Field(examples=["snose"])]
    client_secret: Annotated[Short | None, Field(examples=[None], description="none for a public client")] = None
    redirect_uris: Annotated[
        list[Annotated[str, StringConstraints(max_length=500)]],
        Field(
            min_length=1,
            max_length=10,
            examples=[["http://127.0.0.1/"]],
            description="where a browser may come back to, to the letter; `http://127.0.0.1/...` with any port",
        ),
    ]


class IssuerRequest(Body):
    """Somebody else who signs tokens for this service."""

    issuer: IssuerField
    audience: Annotated[Short, Field(examples=["https://snose.hospital.example"], description="`aud` of its tokens")]
    jwks: JwksField | None = Field(default=None, examples=[None])
    jwks_uri: Annotated[
        str | None,
        StringConstraints(pattern=r"^https?://[!-~]{1,480}$"),
        Field(examples=[None], description="where its keys are, instead of `jwks`"),
    ] = None
    discovery: Annotated[
        bool,
        Field(
            examples=[True],
            description="its keys are where `/.well-known/openid-configuration` below `issuer` says, instead of `jwks`",
        ),
    ] = False
    proof_acr_values: Annotated[
        list[Short],
        Field(max_length=10, examples=[["mfa"]], description="`acr` values that mean a second proof was given"),
    ] = Field(default_factory=list)
    required_groups: Annotated[
        list[Text],
        Field(max_length=20, examples=[["trial-staff"]], description="to one of these a person must belong there"),
    ] = Field(default_factory=list)
    groups_claim: Annotated[Text | None, Field(examples=["groups"])] = None
    sign_in: ClientField | None = Field(default=None, description="that people sign in there, by discovery only")

    @model_validator(mode="after")
    def one_source(self) -> Self:
        """Refuse keys from two sources, and from none."""
        if (self.jwks is not None) + (self.jwks_uri is not None) + self.discovery != 1:
            message = "Send one of jwks, jwks_uri and discovery."
            raise ValueError(message)
        return self

    def new(self) -> NewIssuer:
        """Return what is to be registered."""
        keys = self.jwks.keys if self.jwks is not None else None
        known = self.sign_in
        client = NewClient(known.client_id, known.client_secret, known.redirect_uris) if known is not None else None
        return NewIssuer(
            self.issuer,
            self.audience,
            self.proof_acr_values,
            keys,
            self.jwks_uri,
            self.required_groups,
            self.groups_claim,
            client,
        )


class IssuerRead(Answer):
    """An issuer, in force from its confirmation until it is revoked."""

    issuer_id: UUID = Field(examples=[_ID])
    issuer: str = Field(examples=[_ISSUER])
    audience: str = Field(examples=["https://snose.hospital.example"])
    jwks_uri: str | None = Field(examples=[None])
    client_id: str | None = Field(examples=[None], description="as whom the service signs people in there")
    is_discovered: bool | None = Field(examples=[False], description="whether it says itself where its keys are")
    requested_at: datetime
    requested_by: str = Field(examples=["admin"])
    confirmed_at: datetime | None
    confirmed_by: str | None = Field(examples=["second.admin"])
    revoked_at: datetime | None = Field(examples=[None])
    revoked_by: str | None = Field(examples=[None])


class LinkRequest(Body):
    """An identity of an issuer's, and the one account that it is to stand for."""

    issuer: IssuerField
    subject: Annotated[Short, Field(examples=["248289761001"], description="`sub` of its tokens")]
    username: Annotated[Account | None, Field(examples=["m.rossi"])] = None
    client_id: Annotated[Account | None, Field(examples=[None])] = None

    @model_validator(mode="after")
    def one_account(self) -> Self:
        """Refuse two accounts, and none."""
        if (self.username is None) == (self.client_id is None):
            message = "Name either a username or a client_id."
            raise ValueError(message)
        return self

    def holder(self) -> Holder:
        """Return the account."""
        return Holder(self.username or self.client_id or "", is_machine=self.username is None)


class LinkRead(Answer):
    """A link, in force from its confirmation until it is ended."""

    link_id: UUID = Field(examples=[_ID])
    issuer: str = Field(examples=[_ISSUER])
    subject: str = Field(examples=["248289761001"])
    name: str = Field(examples=["m.rossi"], description="user name, or client id")
    is_machine: bool = Field(examples=[False])
    requested_at: datetime
    requested_by: str = Field(examples=["admin"])
    confirmed_at: datetime | None
    confirmed_by: str | None = Field(examples=["m.rossi"])
    ended_at: datetime | None = Field(examples=[None])
    ended_by: str | None = Field(examples=[None])


@door.post("/issuers", Action.REGISTER_ISSUER, 201)
def register_issuer(body: IssuerRequest, ctx: Context) -> IssuerRead:
    """Register an outside issuer, which waits for a second administrator."""
    return IssuerRead.of(issuers.register_issuer(ctx, body.new()))


@door.get("/issuers", Action.LIST_ISSUERS)
def list_issuers(ctx: Context) -> Page[IssuerRead]:
    """List every outside issuer that there ever was."""
    return Page(items=[IssuerRead.of(one) for one in issuers.list_issuers(ctx)], next_cursor=None)


@door.post("/issuers/{issuer_id}/confirmation", Action.CONFIRM_ISSUER)
def confirm_issuer(issuer_id: IdPath, ctx: Context) -> IssuerRead:
    """Confirm an issuer that another administrator has registered."""
    return IssuerRead.of(issuers.confirm_issuer(ctx, UUID(issuer_id)))


@door.delete("/issuers/{issuer_id}", Action.REVOKE_ISSUER)
def revoke_issuer(issuer_id: IdPath, ctx: Context) -> None:
    """Revoke an issuer; every session by its tokens ends at once."""
    issuers.revoke_issuer(ctx, UUID(issuer_id))


@door.post("/identity-links", Action.LINK_IDENTITY, 201)
def link_identity(body: LinkRequest, ctx: Context) -> LinkRead:
    """Link an issuer's identity to an account, which waits for the owner or a second administrator."""
    holder = body.holder()
    made = issuers.link_identity(ctx, body.issuer, body.subject, holder.name, is_machine=holder.is_machine)
    return LinkRead.of(made)


@door.get("/identity-links", Action.LIST_IDENTITIES)
def list_identities(ctx: Context) -> Page[LinkRead]:
    """List every link that there ever was."""
    return Page(items=[LinkRead.of(one) for one in issuers.list_identities(ctx)], next_cursor=None)


@door.post("/identity-links/{link_id}/confirmation", Action.CONFIRM_IDENTITY)
def confirm_identity(link_id: IdPath, ctx: Context) -> LinkRead:
    """Confirm a link that another administrator has asked for."""
    return LinkRead.of(issuers.confirm_identity(ctx, UUID(link_id)))


@door.delete("/identity-links/{link_id}", Action.END_IDENTITY)
def end_identity(link_id: IdPath, ctx: Context) -> None:
    """End a link; its sessions end at once."""
    issuers.end_identity(ctx, UUID(link_id))


@door.get("/me/identity-links", Action.READ_OWN_IDENTITIES)
def read_own_identities(ctx: Context) -> Page[LinkRead]:
    """List the identities that stand, stood or are to stand for me."""
    return Page(items=[LinkRead.of(one) for one in issuers.read_own_identities(ctx)], next_cursor=None)


@door.post("/me/identity-links/{link_id}/confirmation", Action.CONFIRM_OWN_IDENTITY)
def confirm_own_identity(link_id: IdPath, ctx: Context) -> LinkRead:
    """Confirm that an identity is mine."""
    return LinkRead.of(issuers.confirm_own_identity(ctx, UUID(link_id)))
