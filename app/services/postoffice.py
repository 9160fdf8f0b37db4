"""The post office: by which means notices leave a deployment, and the bell that wakes who sends them."""

from dataclasses import dataclass, field
from threading import Event

from app.storage.mail_client import MailClient
from app.storage.webhook_client import WebhookClient


@dataclass(slots=True)
class PostOffice:
    """What a deployment knows of the outside."""

    mail: MailClient | None = None
    """Where the settings name a mail server."""
    webhooks: WebhookClient = field(default_factory=lambda: WebhookClient(may_stay_here=False))
    """The way to the machines of others."""
    wanted: Event = field(default_factory=Event)
    """Set when there may be a notice, so that it need not wait for the next round."""
