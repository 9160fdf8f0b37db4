"""Signing keys that another process made: known here before anything that they signed is judged."""

from app.sealing.signing import SigningKeys
from app.storage import keys
from app.storage.database import Transaction


def take_in_signing_keys(tx: Transaction, signing: SigningKeys) -> None:
    """Take in every signing key on record; from now on the newest one signs. Raises ``SealBroken`` for a damaged one."""
    for key in keys.list_signing_keys(tx):
        signing.add_signing_key(key.version, key.wrapped)
