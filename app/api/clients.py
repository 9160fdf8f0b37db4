"""What a machine client proves itself with: its secrets, one after the other, and its public keys."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import Path
from pydantic import Field

from app.api.doors import Context, Door
from app.api.schemas import Answer, Body, Page
from app.domain.words import Action
from app.services import clients

door = Door("People and clients")

ClientPath = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{1,39}$", examples=["client-mzxw6ytboi7dcmrt"])]
_KEY_ID: Final = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
KeyPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{43}$", examples=[_KEY_ID])]
FingerprintPath = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", examples=["9f2c6f0a1e5d4b7c"])]
_LONGEST_OVERLAP: Final = 24 * 90


class SecretRequest(Body):
    """How long the secret before the new one goes on opening."""

    overlap_hours: Annotated[int, Field(ge=0, le=_LONGEST_OVERLAP, examples=[48])] = 24


class IssuedSecretRead(Answer):
    """A new secret of a machine client."""

    client_id: str = Field(examples=["client-mzxw6ytboi7dcmrt"])
    client_secret: str = Field(
        examples=["snose_client_4Jc0m5s3y2mXn1QeJb3yq2mC8wq0K7r5m1m1l6yJ8sA"], description="shown once"
    )
    fingerprint: str = Field(
        examples=["9f2c6f0a1e5d4b7c"], description="the first 16 hexadecimal digits of its SHA-256"
    )


class SecretRead(Answer):
    """A secret that opens now."""

    fingerprint: str = Field(examples=["9f2c6f0a1e5d4b7c"])
    issued_at: datetime
    ends_at: datetime | None = Field(examples=["2026-11-24T09:14:03+00:00"], description="null for the newest one")


class KeyRequest(Body):
    """The public half of a key pair that the client made for itself."""

    jwk: Annotated[
        dict[str, Any],
        Field(
            description="RFC 7517: P-256 (ES256), Ed25519 (EdDSA) or RSA of 2048 to 4096 bits (PS256, or RS256 by its `alg`)",
            examples=[{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}],
        ),
    ]


class KeyRead(Answer):
    """A public key of a machine client, known by its thumbprint (RFC 7638)."""

    key_id: str = Field(examples=[_KEY_ID])
    algorithm: str = Field(examples=["EdDSA"])
    added_at: datetime
    added_by: str = Field(examples=["admin"])
    revoked_at: datetime | None = Field(examples=[None])
    revoked_by: str | None = Field(examples=[None])


@door.post("/clients/{client_id}/secrets", Action.ISSUE_CLIENT_SECRET, 201)
def issue_client_secret(client_id: ClientPath, body: SecretRequest, ctx: Context) -> IssuedSecretRead:
    """Issue a new secret beside the old one, which ends after the overlap."""
    return IssuedSecretRead.of(clients.issue_secret(ctx, client_id, timedelta(hours=body.overlap_hours)))


@door.get("/clients/{client_id}/secrets", Action.LIST_CLIENT_CREDENTIALS)
def list_client_secrets(client_id: ClientPath, ctx: Context) -> Page[SecretRead]:
    """List the secrets that open now, by fingerprint."""
    found = clients.list_secrets(ctx, client_id)
    return Page(items=[SecretRead.of(secret) for secret in found], next_cursor=None)


@door.delete("/clients/{client_id}/secrets/{fingerprint}", Action.REVOKE_CLIENT_CREDENTIAL)
def revoke_client_secret(client_id: ClientPath, fingerprint: FingerprintPath, ctx: Context) -> None:
    """Revoke a secret at once, and end the client's tokens."""
    clients.revoke_secret(ctx, client_id, fingerprint)


@door.post("/clients/{client_id}/keys", Action.ADD_CLIENT_KEY, 201)
def add_client_key(client_id: ClientPath, body: KeyRequest, ctx: Context) -> KeyRead:
    """Register a public key with which the client signs for its tokens (RFC 7523)."""
    return KeyRead.of(clients.add_key(ctx, client_id, body.jwk))


@door.get("/clients/{client_id}/keys", Action.LIST_CLIENT_CREDENTIALS)
def list_client_keys(client_id: ClientPath, ctx: Context) -> Page[KeyRead]:
    """List every key that the client ever had."""
    return Page(items=[KeyRead.of(key) for key in clients.list_keys(ctx, client_id)], next_cursor=None)


@door.delete("/clients/{client_id}/keys/{key_id}", Action.REVOKE_CLIENT_CREDENTIAL)
def revoke_client_key(client_id: ClientPath, key_id: KeyPath, ctx: Context) -> None:
    """Revoke a key at once, and end the client's tokens."""
    clients.revoke_key(ctx, client_id, key_id)
