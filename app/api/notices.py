"""Who is told that a code was broken. A notice tells that it happened, to whom and when, and has no field for a treatment."""

from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from app.api.doors import Context, Door
from app.api.schemas import Answer, Body, IdPath, Page, ReceiptRead, StudyPath, Text, Time
from app.domain.notices import Channel
from app.domain.words import Action, StudyCode
from app.services import notices

door = Door("Notices")

RowId = Annotated[UUID, Field(examples=["3f0c9b5e-6f0e-4c5e-9a59-3d1c6a4f2b10"])]
Email = Annotated[Text, Field(examples=["safety@sponsor.example.org"])]
Adder = Annotated[str, Field(examples=["a.lund"])]
Count = Annotated[int, Field(examples=[0])]


class ContactRequest(Body):
    """A person of the sponsor who is told by e-mail when a code was broken."""

    email: Email


class ContactRead(Answer):
    """A person who is told from now on."""

    contact_id: RowId
    email: Email
    added_at: Time
    added_by: Adder
    receipt: ReceiptRead | None


class ContactItemRead(Answer):
    """A person who is told, or was until removed, and what became of the notices."""

    contact_id: Annotated[RowId, Field(validation_alias="receiver_id")]
    email: Annotated[Email, Field(validation_alias="address")]
    added_at: Time
    added_by: Adder
    removed_at: Time | None
    delivered: Count
    waiting: Count
    given_up: Annotated[Count, Field(description="not delivered within a day and a half")]


Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500),
    Field(examples=["https://edc.example.org/hooks/snose"], description="HTTPS, at a public address"),
]
Secret = Annotated[
    str, Field(examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"], description="of Standard Webhooks, shown this once")
]


class WebhookRequest(Body):
    """A machine that is told by HTTPS when a code was broken, an EDC system for instance."""

    url: Url


class WebhookRead(Answer):
    """A machine that is told from now on, with the secret by which it knows who sends."""

    webhook_id: RowId
    url: Url
    secret: Secret
    added_at: Time
    added_by: Adder
    receipt: ReceiptRead | None


class WebhookItemRead(Answer):
    """A machine that is told, or was until removed, and what became of the notices."""

    webhook_id: Annotated[RowId, Field(validation_alias="receiver_id")]
    url: Annotated[Url, Field(validation_alias="address")]
    added_at: Time
    added_by: Adder
    removed_at: Time | None
    disabled_at: Annotated[Time | None, Field(description="when it answered 410, after which it is told no more")]
    delivered: Count
    waiting: Count
    given_up: Count


@door.post("/studies/{study}/contacts", Action.ADD_CONTACT, 201)
def add_contact(study: StudyPath, body: ContactRequest, ctx: Context) -> ContactRead:
    """Have a person of the sponsor told of code breaks by e-mail."""
    return ContactRead.of(notices.add_contact(ctx, StudyCode(study), body.email))


@door.get("/studies/{study}/contacts", Action.READ_RECEIVERS)
def list_contacts(study: StudyPath, ctx: Context) -> Page[ContactItemRead]:
    """List who is told of code breaks by e-mail."""
    found = notices.list_receivers(ctx, StudyCode(study), Channel.CONTACT)
    return Page(items=[ContactItemRead.of(one) for one in found], next_cursor=None)


@door.delete("/studies/{study}/contacts/{contact_id}", Action.REMOVE_RECEIVER)
def remove_contact(study: StudyPath, contact_id: IdPath, ctx: Context) -> None:
    """Tell a person nothing any more."""
    notices.remove_receiver(ctx, StudyCode(study), Channel.CONTACT, UUID(contact_id))


@door.post("/studies/{study}/webhooks", Action.ADD_WEBHOOK, 201)
def add_webhook(study: StudyPath, body: WebhookRequest, ctx: Context) -> WebhookRead:
    """Have a machine told of code breaks by a signed webhook."""
    return WebhookRead.of(notices.add_webhook(ctx, StudyCode(study), body.url))


@door.get("/studies/{study}/webhooks", Action.READ_RECEIVERS)
def list_webhooks(study: StudyPath, ctx: Context) -> Page[WebhookItemRead]:
    """List which machines are told of code breaks."""
    found = notices.list_receivers(ctx, StudyCode(study), Channel.WEBHOOK)
    return Page(items=[WebhookItemRead.of(one) for one in found], next_cursor=None)


@door.delete("/studies/{study}/webhooks/{webhook_id}", Action.REMOVE_RECEIVER)
def remove_webhook(study: StudyPath, webhook_id: IdPath, ctx: Context) -> None:
    """Tell a machine nothing any more."""
    notices.remove_receiver(ctx, StudyCode(study), Channel.WEBHOOK, UUID(webhook_id))
