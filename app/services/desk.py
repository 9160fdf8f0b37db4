"""The emergency desk: for whom code-break envelopes are closed, and in which folder they are put down."""

from dataclasses import dataclass, field
from threading import Event
from uuid import UUID

from app.storage.envelope_folder import EnvelopeFolder


@dataclass(slots=True)
class EmergencyDesk:
    """What a deployment with envelopes knows of the desk; its private key is the desk's own."""

    public_key: str
    """X25519, base64 of 32 bytes."""
    folder: EnvelopeFolder
    wanted: Event = field(default_factory=Event)
    """Set when an envelope was committed, so that its file need not wait for the next round."""
    looked_until: tuple[UUID, UUID] | None = None
    """Up to which envelope the last round has looked for files."""
