"""Recovery of a lost second factor, through a colleague."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from app.api.doors import Context, Door
from app.api.people import DeviceSecret, OneTimeCode, Secret, StepUpRead
from app.api.schemas import Answer, Body, IdPath, RowId
from app.domain.words import Action, IdentityCheck, Username
from app.services import recoveries

door = Door("People and clients")


class RecoveryRequest(Body):
    """Who has lost a second factor, with the password."""

    username: Annotated[Secret, Field(examples=["m.rossi"])]
    password: Annotated[Secret, Field(examples=["seven quiet herons at dawn"])]


class RequestedRecoveryRead(Answer):
    """A new second factor that opens nothing before a colleague has confirmed it."""

    recovery_id: RowId
    code_for_colleague: str = Field(examples=["7KQ2-M4RT-9WBV"], description="to be told to one colleague; shown once")
    totp_secret: str = Field(
        examples=["JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"],
        description="the new second factor, for the own device alone; base32; SHA-1, 6 digits, 30 s; shown once",
    )
    expires_at: datetime = Field(examples=["2026-11-22T09:44:03+00:00"])


class RecoveryConfirmationRequest(Body):
    """Whom the caller vouches for, by which code, and how the caller made sure of who asks."""

    username: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{1,39}$"), Field(examples=["m.rossi"])]
    code: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z -]{1,40}$"), Field(examples=["7KQ2-M4RT-9WBV"])]
    identity_check: Annotated[IdentityCheck, Field(strict=False, examples=["call_back"])]


class ConfirmedRecoveryRead(Answer):
    """A recovery that only waits for its person."""

    recovery_id: RowId
    username: str = Field(examples=["m.rossi"])
    confirmed_by: str = Field(examples=["k.sato"])
    confirmed_at: datetime = Field(examples=["2026-11-22T09:20:51+00:00"])
    expires_at: datetime = Field(examples=["2026-11-22T09:44:03+00:00"])


class RecoveryCompletionRequest(Body):
    """The password, and the first code of the new second factor."""

    password: Annotated[Secret, Field(examples=["seven quiet herons at dawn"])]
    otp: Annotated[OneTimeCode, Field(examples=["492039"])]


class RecoveredSessionRead(StepUpRead):
    """A session by the password and the new second factor."""


@door.post("/factor-recoveries", Action.REQUEST_FACTOR_RECOVERY, 201)
def request_recovery(body: RecoveryRequest, ctx: Context, device: DeviceSecret = None) -> RequestedRecoveryRead:
    """Ask for the recovery of my lost second factor."""
    return RequestedRecoveryRead.of(recoveries.request(ctx, body.username, body.password, device))


@door.post("/factor-recoveries/confirmation", Action.CONFIRM_FACTOR_RECOVERY)
def confirm_recovery(body: RecoveryConfirmationRequest, ctx: Context) -> ConfirmedRecoveryRead:
    """Confirm that a colleague has lost a second factor."""
    confirmed = recoveries.confirm(ctx, Username(body.username), body.code, body.identity_check)
    return ConfirmedRecoveryRead.of(confirmed)


@door.post("/factor-recoveries/{recovery_id}/completion", Action.COMPLETE_FACTOR_RECOVERY, 201)
def complete_recovery(recovery_id: IdPath, body: RecoveryCompletionRequest, ctx: Context) -> RecoveredSessionRead:
    """Put my new second factor in the place of the lost one, and sign in."""
    return RecoveredSessionRead.of(recoveries.complete(ctx, UUID(recovery_id), body.password, body.otp))
