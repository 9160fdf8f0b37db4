"""Who keeps the key above all keys: a provider wraps and unwraps the deployment secret, and nothing else.

The embedded default is a key file: 32 random bytes that only the service's own user can read. With Vault or
OpenBao transit (``app.sealing.vault``) the key that wraps never enters the service.
"""

from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from pathlib import Path
from typing import Final, NoReturn, Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.domain.entropy import Entropy
from app.errors import KeyUnavailable, SealBroken
from app.sealing.envelope import KEY_LENGTH, NONCE_LENGTH, open_box, read_token, write_token
from app.sealing.files import create_private_file, read_private_file

_HEADER: Final = b"snose key file v1\n"
_LONGEST: Final = 1024
_KEY_ID: Final = "file"


class KeyProvider(Protocol):
    """Wraps one secret; what it gives may lie in the database."""

    @property
    def name(self) -> str:
        """Return what the operator calls this provider; no secret."""
        ...

    @property
    def weakness(self) -> str | None:
        """Return in one sentence what makes the way to this provider unsafe; None when nothing does (rule F2)."""
        ...

    def wrap(self, secret: bytes, context: bytes) -> str:
        """Return ``secret`` wrapped and bound to ``context``. Raises ``KeyUnavailable``."""
        ...

    def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return what was wrapped. Raises ``KeyUnavailable`` for another key, context or wrapped text."""
        ...


class KeyFileProvider:
    """The embedded default: wraps with AES-256-GCM under a key that a file holds.

    The file is read when it is needed, so that a service can start sealed and say why. Wrapping and unwrapping
    raise ``KeyUnavailable`` for a file that is missing or holds something else, ``UnsafeSetting`` for one that
    others can read.
    """

    def __init__(self, path: Path, entropy: Entropy) -> None:
        self._path = path
        self._entropy = entropy

    def __repr__(self) -> str:
        return f"<KeyFileProvider {self._path}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A key provider is not pickled or copied.")

    @property
    def name(self) -> str:
        """Return the kind of provider and the file, for the operator."""
        return f"file:{self._path}"

    @property
    def weakness(self) -> None:
        """Return nothing: a key file that others can read is refused when it is read."""
        return

    @staticmethod
    def create(path: Path, key: bytes) -> None:
        """Write a new key file (mode 0600) and make it durable: a lost key is a lost list.

        An existing file is never overwritten. Raises ``UnsafeSetting`` then, ``KeyUnavailable`` when the file
        cannot be written, ``ValueError`` for a key that has not 32 bytes.
        """
        if len(key) != KEY_LENGTH:
            message = f"A key has {KEY_LENGTH} bytes, not {len(key)}."
            raise ValueError(message)
        create_private_file(path, "a key file", _HEADER + b2a_base64(key))

    def wrap(self, secret: bytes, context: bytes) -> str:
        """Return ``secret`` wrapped under the file's key and bound to ``context``."""
        nonce = self._entropy.draw("nonce", NONCE_LENGTH)
        return write_token(_KEY_ID, nonce, self._cipher().encrypt(nonce, secret, context))

    def unwrap(self, wrapped: str, context: bytes) -> bytes:
        """Return what was wrapped. Raises ``KeyUnavailable`` for another key, context or wrapped text."""
        cipher = self._cipher()
        try:
            # The key id of the text is not asked: only one key is here, and only what it wrapped opens.
            _, nonce, box = read_token(wrapped)
            return open_box(cipher, nonce, box, context)
        except SealBroken:
            message = f"The key file {self._path} does not open the secret of this deployment."
            raise KeyUnavailable(message) from None

    def _cipher(self) -> AESGCM:
        return AESGCM(_read_key(self._path))


def _read_key(path: Path) -> bytes:
    key = _parse(read_private_file(path, "key file", _LONGEST))
    if key is None:
        message = f"The file {path} is not a key file of this service."
        raise KeyUnavailable(message)
    return key


def _parse(content: bytes) -> bytes | None:
    try:
        key = a2b_base64(content.removeprefix(_HEADER))
    except NotBase64:
        return None
    # One spelling, so that a damaged file is never read as another key.
    return key if len(key) == KEY_LENGTH and content == _HEADER + b2a_base64(key) else None
