"""Known devices, which their owner lists and ends."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from app.api.doors import Context, Door
from app.api.schemas import Answer, IdPath, Page, RowId
from app.domain.words import Action
from app.services import devices

door = Door("People and clients")


class DeviceRead(Answer):
    """A known device, as its owner sees it."""

    device_id: RowId
    remembered_at: datetime = Field(examples=["2026-11-22T09:14:03+00:00"])
    used_at: datetime | None = Field(examples=["2026-11-23T07:58:10+00:00"], description="last sign-in with it")
    expires_at: datetime = Field(examples=["2027-02-20T09:14:03+00:00"])


@door.get("/me/devices", Action.LIST_DEVICES)
def list_devices(ctx: Context) -> Page[DeviceRead]:
    """List my known devices."""
    return Page(items=[DeviceRead.of(one) for one in devices.list_own(ctx)], next_cursor=None)


@door.delete("/me/devices/{device_id}", Action.END_DEVICE)
def end_device(device_id: IdPath, ctx: Context) -> None:
    """End one of my known devices."""
    devices.end(ctx, UUID(device_id))
