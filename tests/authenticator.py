"""A software authenticator: it does what a person's device does in a browser, and whatever a thief's would do.

device = Authenticator()
made = device.create(options)                        # of POST /v1/me/passkeys/challenge
signed = device.get(options)                         # of POST /v1/sessions/challenge
signed = device.get(options, is_verified=False, origin="https://elsewhere.example")

Its signatures are those of RFC 6979, the same in every run.
"""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

RP_ID: Final = "snose.example.org"
ORIGIN: Final = "https://snose.example.org"
SETTINGS: Final = {"passkey_rp_id": RP_ID, "passkey_origin": ORIGIN}
"""What a house is given that takes passkeys."""
_ES256: Final = -7
_PRESENT, _VERIFIED, _ATTESTED = 0x01, 0x04, 0x40
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

Json = dict[str, Any]


def b64(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def header_of(signed: Mapping[str, Any]) -> dict[str, str]:
    """Return the header by which what was signed is sent along with its request."""
    return {"Snose-Passkey": b64(json.dumps(signed).encode())}


@dataclass
class Authenticator:
    """One device with one key."""

    label: str = "phone"
    rp_id: str = RP_ID
    origin: str = ORIGIN
    count: int = 0
    """How often it has signed; a device that does not count says 0 for ever (``step`` 0)."""
    step: int = 1
    user_handle: bytes = b""
    credential_id: bytes = b""
    _key: ec.EllipticCurvePrivateKey = field(init=False)

    def __post_init__(self) -> None:
        seed = hashlib.sha256(b"software authenticator " + self.label.encode()).digest()
        self._key = ec.derive_private_key(int.from_bytes(seed, "big") % (_ORDER - 1) + 1, ec.SECP256R1())
        self.credential_id = self.credential_id or hashlib.sha256(b"id of " + seed).digest()

    def create(self, options: Mapping[str, Any], **changes: Any) -> Json:  # noqa: ANN401  # whatever a thief may say
        """Return what ``navigator.credentials.create()`` answers."""
        self.user_handle = unb64(options["user"]["id"])
        numbers = self._key.public_key().public_numbers()
        cose = {1: 2, 3: _ES256, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
        named = bytes(16) + len(self.credential_id).to_bytes(2, "big") + self.credential_id
        data = self._data(changes, attested=named + cbor2.dumps(changes.get("cose", cose)))
        attestation = {"fmt": changes.get("fmt", "none"), "attStmt": changes.get("statement", {}), "authData": data}
        client_data = self._client_data("webauthn.create", options, changes)
        return self._answer({"clientDataJSON": b64(client_data), "attestationObject": b64(cbor2.dumps(attestation))})

    def get(self, options: Mapping[str, Any], **changes: Any) -> Json:  # noqa: ANN401  # whatever a thief may say
        """Return what ``navigator.credentials.get()`` answers."""
        self.count += self.step
        data = self._data(changes)
        client_data = self._client_data("webauthn.get", options, changes)
        signed = data + hashlib.sha256(client_data).digest()
        signature = self._key.sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        return self._answer(
            {
                "clientDataJSON": b64(client_data),
                "authenticatorData": b64(data),
                "signature": b64(signature),
                "userHandle": b64(self.user_handle),
            }
        )

    def _data(self, changes: Mapping[str, Any], attested: bytes = b"") -> bytes:
        flags = _PRESENT if changes.get("is_present", True) else 0
        flags |= _VERIFIED if changes.get("is_verified", True) else 0
        flags |= _ATTESTED if attested else 0
        rp_id = str(changes.get("rp_id", self.rp_id)).encode()
        count = int(changes.get("count", self.count))
        return hashlib.sha256(rp_id).digest() + bytes([flags]) + count.to_bytes(4, "big") + attested

    def _client_data(self, kind: str, options: Mapping[str, Any], changes: Mapping[str, Any]) -> bytes:
        said = {
            "type": changes.get("type", kind),
            "challenge": changes.get("challenge", options["challenge"]),
            "origin": changes.get("origin", self.origin),
            "crossOrigin": changes.get("cross_origin", False),
            **changes.get("more", {}),
        }
        return json.dumps(said).encode()

    def _answer(self, response: Json) -> Json:
        return {
            "id": b64(self.credential_id),
            "rawId": b64(self.credential_id),
            "type": "public-key",
            "response": response,
            "clientExtensionResults": {},
            "authenticatorAttachment": "platform",
        }
