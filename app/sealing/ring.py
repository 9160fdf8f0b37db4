"""The key ring: from one wrapped secret to every key of the deployment; sealing and opening of values.

    deployment secret        random, wrapped by the key provider
     ├ purposes              HKDF-SHA-256 (RFC 5869), info = "snose/v1/" + purpose + deployment id
     └ study key             random, versioned, wrapped under the purpose "study-keys"
        └ field keys         HKDF-SHA-256 from the study key, the same info

A value is bound by its associated data to deployment, mode, table, column, study, place and key version, so
that one copied to anywhere else does not open (CUS-10, threat test T10). In memory the keys lie as they are:
masked reprs and refused pickles keep them from slipping out, not from the root user of the host.
"""

import hmac
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, NoReturn

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.domain.encoding import encode
from app.domain.entropy import Entropy
from app.domain.sealed import Column, Place, SealContext, Sealed, refuse_wrong_key
from app.domain.words import Mode, StudyCode
from app.errors import IntegrityBroken, KeyRetired, KeyUnavailable, SealBroken
from app.sealing.envelope import (
    KEY_LENGTH,
    NONCE_LENGTH,
    TAG_LENGTH,
    open_box,
    pad,
    read_token,
    unpad,
    write_token,
)
from app.sealing.providers import KeyProvider

_DEPLOYMENT_KEY_ID: Final = "d1"
_DEPLOYMENT_KEY_VERSION: Final = 1
_NONCES_AT_ONCE: Final = 256

Seal = Callable[[Place, bytes], str]
"""Seals a plaintext for a place of the column and gives the token."""
Open = Callable[[Place, str], bytes]
"""Opens the token found in a place of the column."""


@dataclass(frozen=True, slots=True)
class _FieldKey:
    """A cipher set up once (a new one costs three encryptions), and the end of its associated data."""

    key_id: str
    cipher: AESGCM
    encoded_version: bytes


@dataclass(frozen=True, slots=True)
class _Secret:
    """Key material with its version, never printed, and the field keys derived from it, by purpose."""

    version: int
    key: bytes = field(repr=False)
    field_keys: dict[str, _FieldKey] = field(default_factory=dict, repr=False, compare=False)


class KeyRing:
    """Every key of one deployment, once its secret was unwrapped.

    Args: the provider that wrapped the secret; the deployment's id and mode, as the secret was wrapped for
    them; where nonces come from; and the wrapped study keys as (study, version, wrapped). Raises
    ``KeyUnavailable`` when the provider does not unwrap the secret (rule F2), ``SealBroken`` when a study key
    is not of this deployment, mode, study and version.
    """

    def __init__(
        self,
        provider: KeyProvider,
        deployment_id: str,
        mode: Mode,
        wrapped_secret: str,
        entropy: Entropy,
        study_keys: Iterable[tuple[StudyCode, int, str]] = (),
    ) -> None:
        self._deployment_id = deployment_id
        self._mode = mode
        self._entropy = entropy
        secret = provider.unwrap(wrapped_secret, secret_context(deployment_id, mode))
        if len(secret) != KEY_LENGTH:
            raise KeyUnavailable("The key provider gave a deployment secret of a wrong length.")
        self._deployment_secret = _Secret(_DEPLOYMENT_KEY_VERSION, secret)
        self._purpose_keys: dict[str, _Secret] = {}
        # Under None lies what belongs to no study. The newest key seals; every one of them opens.
        self._keys: dict[StudyCode | None, dict[str, _Secret]] = {None: {_DEPLOYMENT_KEY_ID: self._deployment_secret}}
        self._least: dict[StudyCode | None, int] = {}
        self._adding = Lock()
        for study_code, version, wrapped in study_keys:
            self.add_study_key(study_code, version, wrapped)

    def __repr__(self) -> str:
        return f"<KeyRing of {self._mode} deployment {self._deployment_id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A key ring is not pickled or copied.")

    # -- the deployment secret -------------------------------------------------------------------------------

    @staticmethod
    def create_secret(provider: KeyProvider, deployment_id: str, mode: Mode, secret: bytes) -> str:
        """Return ``secret`` (32 random bytes) wrapped for this deployment, fit to be stored (rule F1)."""
        _refuse_wrong_length(secret)
        return provider.wrap(secret, secret_context(deployment_id, mode))

    @staticmethod
    def rewrap_deployment_secret(
        old_provider: KeyProvider, new_provider: KeyProvider, deployment_id: str, mode: Mode, wrapped: str
    ) -> str:
        """Return the same secret wrapped by the new provider; no sealed value changes (rule F4, CUS-08).

        The new wrapping was unwrapped and compared before it is returned, because the old one will be thrown
        away. Raises ``KeyUnavailable`` when either provider fails, ``IntegrityBroken`` when they disagree.
        """
        context = secret_context(deployment_id, mode)
        secret = old_provider.unwrap(wrapped, context)
        renewed = new_provider.wrap(secret, context)
        if not hmac.compare_digest(new_provider.unwrap(renewed, context), secret):
            raise IntegrityBroken("The new key provider does not give back what it was given.")
        return renewed

    # -- purposes --------------------------------------------------------------------------------------------

    def purpose_key(self, purpose: str) -> bytes:
        """Return the deployment's 256-bit key for one purpose. Danger: it never enters a log or an answer."""
        kept = self._purpose_keys.get(purpose)
        if kept is None:
            kept = _Secret(_DEPLOYMENT_KEY_VERSION, self._derive(self._deployment_secret, purpose))
            self._purpose_keys[purpose] = kept
        return kept.key

    def mac(self, purpose: str, message: bytes) -> bytes:
        """Return the HMAC-SHA-256 (RFC 2104) of ``message`` under the key of a purpose."""
        return hmac.digest(self.purpose_key(purpose), message, "sha256")

    def check_mac(self, purpose: str, message: bytes, mac: bytes) -> None:
        """Raise ``IntegrityBroken`` unless ``mac`` is that of ``message``; compares in constant time."""
        if not hmac.compare_digest(self.mac(purpose, message), mac):
            raise IntegrityBroken("A stored value does not carry this service's own seal.")

    def wrap_key(self, purpose: str, label: Place, key: bytes) -> str:
        """Return a 256-bit key wrapped under the key of a purpose and bound to its label (name, version)."""
        _refuse_wrong_length(key)
        nonce = self._entropy.draw("nonce", NONCE_LENGTH)
        box = AESGCM(self.purpose_key(purpose)).encrypt(nonce, key, self._label(purpose, label))
        return write_token(_DEPLOYMENT_KEY_ID, nonce, box)

    def unwrap_key(self, purpose: str, label: Place, wrapped: str) -> bytes:
        """Return what ``wrap_key`` was given. Raises ``SealBroken`` for another deployment or label."""
        key_id, nonce, box = read_token(wrapped)
        if key_id != _DEPLOYMENT_KEY_ID or len(box) != KEY_LENGTH + TAG_LENGTH:
            raise SealBroken("A wrapped key is not of this deployment.")
        return open_box(AESGCM(self.purpose_key(purpose)), nonce, box, self._label(purpose, label))

    # -- study keys ------------------------------------------------------------------------------------------

    def new_study_key(self, study_code: StudyCode, version: int, key: bytes) -> str:
        """Return ``key`` (32 random bytes) wrapped as a version of the study's key, for ``add_study_key``."""
        if version < 1:
            message = f"Versions of a study key count from 1, not {version}."
            raise ValueError(message)
        return self.wrap_key("study-keys", (study_code, version), key)

    def add_study_key(self, study_code: StudyCode, version: int, wrapped: str) -> None:
        """Take in a study key; from now on the highest version seals.

        Raises ``SealBroken`` when it is not of this deployment, mode, study and version. Taking in the same
        key again changes nothing; another key of the same version raises ``SealBroken``, because what was
        sealed under the first would be lost. A retired version is passed over.
        """
        if version < self._least.get(study_code, 1):
            return
        secret = _Secret(version, self.unwrap_key("study-keys", (study_code, version), wrapped))
        key_id = _study_key_id(version)
        with self._adding:
            kept = self._keys.get(study_code, {})
            if not hmac.compare_digest(kept.get(key_id, secret).key, secret.key):
                raise SealBroken("Another key of this version is in use.")
            # A new mapping each time: requests of other threads go on reading the one they began with.
            self._keys[study_code] = {**kept, key_id: secret}

    def retire_study_keys(self, study_code: StudyCode, least: int) -> None:
        """Drop every version of the study's key below ``least``: what they sealed raises ``KeyRetired`` from now on (rule F4)."""
        if least <= self._least.get(study_code, 1):
            return
        with self._adding:
            self._least[study_code] = least
            kept = self._keys.get(study_code, {})
            self._keys[study_code] = {key_id: secret for key_id, secret in kept.items() if secret.version >= least}

    def forget_study(self, study_code: StudyCode) -> None:
        """Drop the keys of a study whose registration was rolled back, so that the next one may bring its own."""
        with self._adding:
            self._keys.pop(study_code, None)

    def holds(self, study_code: StudyCode, version: int) -> bool:
        """Return whether this version of the study's key was taken in."""
        return _study_key_id(version) in self._keys.get(study_code, {})

    def newest_version(self, study_code: StudyCode | None) -> int:
        """Return the key version that seals. Raises ``KeyUnavailable`` for a study without a key."""
        return self._newest(study_code)[1].version

    # -- sealing and opening ---------------------------------------------------------------------------------

    def seal(self, context: SealContext, plaintext: bytes) -> Sealed:
        """Return ``plaintext`` sealed for its place under the newest key.

        Raises ``ValueError`` when it is longer than the column's capacity, ``KeyUnavailable`` for a study
        without a key.
        """
        column, study_code = context.column, context.study_code
        key = self._field_key(column, study_code, self._newest(study_code)[0])
        associated = self._prefix(column, study_code) + encode(*context.place) + key.encoded_version
        nonce = self._entropy.draw("nonce", NONCE_LENGTH)
        box = key.cipher.encrypt(nonce, pad(plaintext, column.length), associated)
        return Sealed(write_token(key.key_id, nonce, box))

    def open(self, context: SealContext, sealed: Sealed) -> bytes:
        """Return what was sealed for this place.

        Raises ``SealBroken`` when it was not, or was changed since; the message holds nothing of it.
        """
        return self.opener_for(context.column, context.study_code)(context.place, sealed.token)

    def reseal(self, context: SealContext, sealed: Sealed) -> Sealed:
        """Return the same value sealed under the newest key, opened again and compared (rule F4, CUS-08)."""
        plaintext = self.open(context, sealed)
        renewed = self.seal(context, plaintext)
        if not hmac.compare_digest(self.open(context, renewed), plaintext):
            raise SealBroken("A value sealed anew does not open to what it was.")
        return renewed

    def version_of(self, sealed: Sealed) -> int:
        """Return the key version that a sealed value names. Raises ``SealBroken`` when it names none."""
        version = read_token(sealed.token)[0][1:]
        if not version.isascii() or not version.isdigit():
            raise SealBroken("A sealed value names no key.")
        return int(version)

    def sealer_for(self, column: Column, study_code: StudyCode | None) -> Seal:
        """Return a function that seals many values of one column under one key; for lists of a million slots.

        Danger: made for one job in one thread and one process. It holds nonces drawn in advance, and a fork
        would use them twice; two threads at once raise ``ValueError``. It goes on with its key when a newer
        one is taken in.
        """
        refuse_wrong_key(column, study_code)
        key = self._field_key(column, study_code, self._newest(study_code)[0])
        prefix = self._prefix(column, study_code)
        # Looked up once: at a million slots every attribute counts.
        key_id, encrypt, suffix, length = key.key_id, key.cipher.encrypt, key.encoded_version, column.length
        nonces = _nonces(self._entropy)

        def seal(place: Place, plaintext: bytes) -> str:
            nonce = next(nonces)
            box = encrypt(nonce, pad(plaintext, length), prefix + encode(*place) + suffix)
            return write_token(key_id, nonce, box)

        return seal

    def opener_for(self, column: Column, study_code: StudyCode | None) -> Open:
        """Return a function that opens values of one column, whatever key version they name.

        It raises ``SealBroken`` like ``open``. This raises ``KeyUnavailable`` for a study without a key.
        """
        refuse_wrong_key(column, study_code)
        self._newest(study_code)
        prefix = self._prefix(column, study_code)
        box_length = column.length + TAG_LENGTH

        def open_(place: Place, token: str) -> bytes:
            key_id, nonce, box = read_token(token)
            if len(box) != box_length:
                raise SealBroken("A sealed value is not of the length of its column.")
            key = self._field_key(column, study_code, key_id)
            return unpad(open_box(key.cipher, nonce, box, prefix + encode(*place) + key.encoded_version))

        return open_

    # -- inside ----------------------------------------------------------------------------------------------

    def _newest(self, study_code: StudyCode | None) -> tuple[str, _Secret]:
        keys = self._keys.get(study_code)
        if not keys:
            raise KeyUnavailable("The key of this study is not available.")
        return max(keys.items(), key=lambda kept: kept[1].version)

    def _field_key(self, column: Column, study_code: StudyCode | None, key_id: str) -> _FieldKey:
        # A key id out of a stored token is only ever looked up: one that is not there never becomes a key.
        secret = self._keys.get(study_code, {}).get(key_id)
        if secret is None:
            if key_id in {_study_key_id(version) for version in range(1, self._least.get(study_code, 1))}:
                raise KeyRetired("A sealed value names a version of its study's key that was retired.")
            raise SealBroken("A sealed value names a key that is not of this study.")
        kept = secret.field_keys.get(column.purpose)
        if kept is None:
            cipher = AESGCM(self._derive(secret, column.purpose))
            kept = secret.field_keys[column.purpose] = _FieldKey(key_id, cipher, encode(secret.version))
        return kept

    def _derive(self, secret: _Secret, purpose: str) -> bytes:
        info = f"snose/v1/{purpose}{self._deployment_id}".encode()
        return HKDF(algorithm=SHA256(), length=KEY_LENGTH, salt=None, info=info).derive(secret.key)

    def _prefix(self, column: Column, study_code: StudyCode | None) -> bytes:
        return encode(self._deployment_id, self._mode, column.table, column.column, study_code or "")

    def _label(self, purpose: str, label: Place) -> bytes:
        return encode(self._deployment_id, self._mode, purpose, *label)


def secret_context(deployment_id: str, mode: Mode) -> bytes:
    """Return what every wrapping of the deployment secret is bound to."""
    return encode("snose deployment secret", deployment_id, mode)


def _study_key_id(version: int) -> str:
    return f"s{version}"


def _refuse_wrong_length(key: bytes) -> None:
    if len(key) != KEY_LENGTH:
        message = f"A key has {KEY_LENGTH} bytes, not {len(key)}."
        raise ValueError(message)


def _nonces(entropy: Entropy) -> Iterator[bytes]:
    while True:
        drawn = entropy.draw("nonce", NONCE_LENGTH * _NONCES_AT_ONCE)
        for start in range(0, len(drawn), NONCE_LENGTH):
            yield drawn[start : start + NONCE_LENGTH]
