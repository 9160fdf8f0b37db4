"""The deployment secret for an independent party: it brings the service back when the provider's key is lost (CUS-08, CUS-12).

An escrow is one line of JSON. In clear it names the deployment, its mode and the version of the secret; the box is the secret,
encrypted to the X25519 key of whoever keeps it (HPKE, RFC 9180) and bound to these words, so that it opens for no other deployment.
Rotations renew the wrapping of the secret, study keys and signing keys; the secret itself stays, so an older escrow opens a newer
database.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, NoReturn

import msgspec

from app.domain.encoding import encode
from app.domain.words import Mode
from app.errors import Invalid, KeyUnavailable, SealBroken, UnsafeSetting
from app.sealing.providers import KeyProvider
from app.sealing.recipients import decrypt_with, encrypt_to
from app.sealing.ring import secret_context

_SECRET_VERSION: Final = 1


class _Escrow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file; msgspec writes the box in base64."""

    snose_escrow: Literal[1]
    deployment_id: str
    mode: Mode
    secret_version: Literal[1]
    box: bytes


def escrow_secret(
    provider: KeyProvider, deployment_id: str, mode: Mode, wrapped: str, recipient_public_key: str
) -> bytes:
    """Return the escrow of a deployment secret for the holder of an X25519 key (base64 of its 32 bytes).

    Raises ``KeyUnavailable`` when the provider does not unwrap the secret, ``Invalid`` for a key that is none.
    """
    context = secret_context(deployment_id, mode)
    box = encrypt_to(recipient_public_key, provider.unwrap(wrapped, context), _info(context))
    return msgspec.json.encode(_Escrow(1, deployment_id, mode, _SECRET_VERSION, box)) + b"\n"


def _info(context: bytes) -> bytes:
    return encode("snose/v1/escrow", _SECRET_VERSION) + context


@dataclass(frozen=True, slots=True)
class EscrowProvider:
    """An escrow and the key that opens it, in the place of the key provider that was lost: it unwraps, and wraps nothing.

    That it gives the right secret is found out as with every provider: by the keys under it.
    """

    deployment_id: str
    mode: Mode
    box: bytes = field(repr=False)
    private_key: str = field(repr=False)

    @classmethod
    def of(cls, content: bytes, private_key: str) -> "EscrowProvider":
        """Return the escrow that a file holds; raise ``KeyUnavailable`` for what is none, or is damaged."""
        try:
            told = msgspec.json.decode(content, type=_Escrow)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            message = "The escrow file is damaged, or is no escrow of this service. Nothing was changed."
            raise KeyUnavailable(message) from None
        return cls(told.deployment_id, told.mode, told.box, private_key)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A key provider is not pickled or copied.")

    @property
    def name(self) -> str:
        """Return the kind of provider."""
        return "escrow"

    @property
    def weakness(self) -> None:
        """Return nothing: nothing is ever wrapped by it."""
        return

    def wrap(self, secret: bytes, context: bytes) -> str:
        """Raise ``UnsafeSetting``: an escrow is for opening."""
        del secret, context
        raise UnsafeSetting("An escrow wraps nothing.")

    def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return the secret, whatever it was wrapped as in the database; raise ``KeyUnavailable`` when it does not open."""
        del wrapped
        if context != secret_context(self.deployment_id, self.mode):
            message = f"This escrow is of the {self.mode} deployment {self.deployment_id}, not of this one. Nothing was changed."
            raise KeyUnavailable(message)
        try:
            return decrypt_with(self.private_key, self.box, _info(context))
        except (Invalid, SealBroken):
            message = "The recipient key does not open this escrow, or the file was altered. Nothing was changed."
            raise KeyUnavailable(message) from None
