"""Passkeys (WebAuthn): a key on the person's own device, which asks for a finger, a face or a PIN before it signs.

The library is loaded when it is first needed: a third of a second that no command, and no service without passkeys, waits for.
"""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.errors import Invalid, WrongPasskey

LONGEST_ID: Final = 255
"""Bytes of a credential's id; the standard allows more, and no device was seen to make them."""
LONGEST_KEY: Final = 700
"""Bytes of a public key: an RSA key of 4,096 bits, the largest that is used, has some 540."""
_ALGORITHMS: Final = (-7, -8, -257)
"""ES256, EdDSA and RS256 (RFC 9053, RFC 8812), in the order in which they are preferred."""
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")
_CEREMONY_MS: Final = 300_000

Response = Mapping[str, Any]
"""What ``PublicKeyCredential.toJSON()`` gives in a browser."""


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """For whom devices keep their keys: the domain, and the page that may ask for a signature."""

    rp_id: str
    origin: str


@dataclass(frozen=True, slots=True)
class NewPasskey:
    """What a device made: the id of its key, the public part, and how often it has signed."""

    credential_id: bytes
    public_key: bytes
    sign_count: int


def creation_options(
    party: RelyingParty, challenge: bytes, user_id: bytes, name: str, display_name: str, known: Sequence[bytes]
) -> dict[str, Any]:
    """Return what ``navigator.credentials.create()`` takes: a key that is found without a name, and no attestation."""
    from webauthn import generate_registration_options, options_to_json  # noqa: PLC0415  # see the module's docstring
    from webauthn.helpers import structs  # noqa: PLC0415
    from webauthn.helpers.cose import COSEAlgorithmIdentifier  # noqa: PLC0415

    options = generate_registration_options(
        rp_id=party.rp_id,
        rp_name="snose",
        user_name=name,
        user_id=user_id,
        user_display_name=display_name,
        challenge=challenge,
        timeout=_CEREMONY_MS,
        attestation=structs.AttestationConveyancePreference.NONE,
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            resident_key=structs.ResidentKeyRequirement.REQUIRED,
            user_verification=structs.UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[structs.PublicKeyCredentialDescriptor(id=one) for one in known],
        supported_pub_key_algs=[COSEAlgorithmIdentifier(one) for one in _ALGORITHMS],
    )
    made: dict[str, Any] = json.loads(options_to_json(options))
    return made


def request_options(party: RelyingParty, challenge: bytes) -> dict[str, Any]:
    """Return what ``navigator.credentials.get()`` takes; whose key it is the device says, so nobody's name is asked for."""
    from webauthn import generate_authentication_options, options_to_json  # noqa: PLC0415
    from webauthn.helpers import structs  # noqa: PLC0415

    options = generate_authentication_options(
        rp_id=party.rp_id,
        challenge=challenge,
        timeout=_CEREMONY_MS,
        user_verification=structs.UserVerificationRequirement.REQUIRED,
    )
    made: dict[str, Any] = json.loads(options_to_json(options))
    return made


def challenge_of(response: Response) -> bytes:
    """Return the challenge that a device says it has signed; raise ``WrongPasskey``. Nothing is proved by it yet."""
    try:
        client_data = json.loads(_decoded(response["response"]["clientDataJSON"]))
        return _decoded(client_data["challenge"])
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError):
        raise WrongPasskey from None


def credential_id_of(response: Response) -> bytes:
    """Return the id of the key that a device says it has signed with; raise ``WrongPasskey``."""
    try:
        return _decoded(response["rawId"])
    except (LookupError, TypeError, ValueError):
        raise WrongPasskey from None


def refuse_other_owner(response: Response, user_id: bytes) -> None:
    """Raise ``WrongPasskey`` when the device says that its key is somebody else's; a device may also say nothing."""
    try:
        handle = response["response"].get("userHandle")
        if handle is not None and _decoded(handle) != user_id:
            raise WrongPasskey
    except (AttributeError, LookupError, TypeError, ValueError):
        raise WrongPasskey from None


def verified_new(party: RelyingParty, response: Response, challenge: bytes) -> NewPasskey:
    """Return the key that a device has made for this challenge and this page; raise ``Invalid`` for anything else.

    The person was verified by the device. Attestations are refused: none was asked for, and none is needed to look at.
    """
    from webauthn import verify_registration_response  # noqa: PLC0415
    from webauthn.helpers.cose import COSEAlgorithmIdentifier  # noqa: PLC0415

    message = "The device has not made a passkey for this challenge."
    try:
        _refuse_embedded(response)
        _refuse_attested(response)
        made = verify_registration_response(
            credential=dict(response),
            expected_challenge=challenge,
            expected_rp_id=party.rp_id,
            expected_origin=party.origin,
            require_user_verification=True,
            supported_pub_key_algs=[COSEAlgorithmIdentifier(one) for one in _ALGORITHMS],
        )
    except Exception:  # noqa: BLE001  # strangers' bytes in a library's parsers: whatever they raise, it is no passkey
        raise Invalid(message, "credential") from None
    is_short = len(made.credential_id) <= LONGEST_ID and len(made.credential_public_key) <= LONGEST_KEY
    if not is_short or made.credential_id != credential_id_of(response):
        raise Invalid(message, "credential")
    return NewPasskey(made.credential_id, made.credential_public_key, made.sign_count)


def verified_count(
    party: RelyingParty, response: Response, challenge: bytes, public_key: bytes, sign_count: int
) -> int:
    """Return how often the device has signed, when this is its signature for this challenge, page and verified person.

    Raises ``WrongPasskey`` for anything else, and for a count that does not rise: then there are two of the key.
    """
    from webauthn import verify_authentication_response  # noqa: PLC0415

    try:
        _refuse_embedded(response)
        shown = verify_authentication_response(
            credential=dict(response),
            expected_challenge=challenge,
            expected_rp_id=party.rp_id,
            expected_origin=party.origin,
            credential_public_key=public_key,
            credential_current_sign_count=sign_count,
            require_user_verification=True,
        )
    except Exception:  # noqa: BLE001  # as above
        raise WrongPasskey from None
    return shown.new_sign_count


def _refuse_embedded(response: Response) -> None:
    """Raise ``WrongPasskey`` for a page that was shown inside another one's: who sees it does not know where it is."""
    client_data = json.loads(_decoded(response["response"]["clientDataJSON"]))
    if client_data.get("crossOrigin", False) is not False or "topOrigin" in client_data:
        raise WrongPasskey


def _refuse_attested(response: Response) -> None:
    """Raise ``WrongPasskey`` for an attestation: none was asked for, and the parsers of certificates need not see it."""
    from webauthn.helpers import parse_attestation_object  # noqa: PLC0415

    if parse_attestation_object(_decoded(response["response"]["attestationObject"])).fmt != "none":
        raise WrongPasskey


def _decoded(text: str) -> bytes:
    """Return the bytes of base64url without padding; raise ``ValueError``, or ``TypeError`` for what is no text."""
    if not _BASE64URL.fullmatch(text):
        message = "not base64url"
        raise ValueError(message)
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
