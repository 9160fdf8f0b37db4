"""The environment, read once. Every setting has the prefix ``SNOSE_``; secrets come from files."""

from datetime import timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.words import Mode


class KeyProviderKind(StrEnum):
    """Who keeps the key above all keys."""

    FILE = "file"
    VAULT = "vault"


class Settings(BaseSettings):
    """What an operator decides; each is honoured, and none can stand before an emergency code break (EUB-02)."""

    model_config = SettingsConfigDict(env_prefix="SNOSE_", extra="forbid", frozen=True)

    mode: Annotated[Mode, Field(description="`test` or `live`; bound into keys and identifiers")] = Mode.LIVE
    database_url: Annotated[
        str, Field(description="SQLAlchemy URL of the application's role; SQLite file or PostgreSQL")
    ] = "sqlite:///snose.db"
    database_url_file: Annotated[
        Path | None, Field(description="file that holds the database URL, instead of `database_url`")
    ] = None
    migration_url: Annotated[
        str | None, Field(description="URL of the owner's role, for `snose migrate`; default: `database_url`")
    ] = None
    key_file: Annotated[Path, Field(description="file (0600) with the key that wraps the deployment secret")] = Path(
        "snose.key"
    )
    key_provider: Annotated[
        KeyProviderKind,
        Field(description="`file` (`key_file`) or `vault` (the transit engine of Vault or OpenBao)"),
    ] = KeyProviderKind.FILE
    vault_addr: Annotated[str, Field(description="address of Vault or OpenBao, `https://host:8200`")] = ""
    vault_mount: Annotated[str, Field(description="mount of its transit engine")] = "transit"
    vault_key: Annotated[str, Field(description="its transit key, of the type `aes256-gcm96`")] = "snose"
    vault_token_file: Annotated[Path | None, Field(description="file (0600) with a token for it; or the next two")] = (
        None
    )
    vault_role_id: Annotated[str | None, Field(description="role id, to sign in there by AppRole")] = None
    vault_secret_id_file: Annotated[Path | None, Field(description="file (0600) with the secret id of that role")] = (
        None
    )
    vault_ca_file: Annotated[
        Path | None, Field(description="authority its certificate is proved to; default: the system's own")
    ] = None
    checkpoint_file: Annotated[
        Path, Field(description="file sink of signed checkpoints; keep it on another disk than the database")
    ] = Path("snose-checkpoints.jsonl")
    witness_url: Annotated[
        str | None, Field(description="address of a witness (`snose witness`) that cosigns the checkpoints")
    ] = None
    witness_key: Annotated[str | None, Field(description="its verification key, `name+hash+base64`")] = None
    backup_contact: Annotated[
        str, Field(description="answered with every 503 of a code break, also when the database is down")
    ] = ""
    envelope_folder: Annotated[
        Path | None,
        Field(description="folder of the code-break envelopes, on another disk; with the next one, or none"),
    ] = None
    envelope_desk_key: Annotated[
        str | None, Field(description="public key of the emergency desk, from `snose envelope keys`")
    ] = None
    smtp_url: Annotated[
        str | None,
        Field(description="mail server for notices: `smtp://host:587` (STARTTLS) or `smtps://host:465`; none: no mail"),
    ] = None
    smtp_sender: Annotated[str, Field(description="address that its mails come from")] = ""
    smtp_username: Annotated[str, Field(description="user name there, with the next one; none: no sign-in")] = ""
    smtp_password_file: Annotated[Path | None, Field(description="file (0600) with the password there")] = None
    smtp_ca_file: Annotated[
        Path | None, Field(description="authority its certificate is proved to; default: the system's own")
    ] = None
    password_max_age_days: Annotated[
        int | None, Field(ge=1, description="days after which a password must be changed; none by default")
    ] = None
    second_factor_required: Annotated[
        bool, Field(description="people open nothing of a study before a second factor was shown in their session")
    ] = False
    two_person_grants: Annotated[
        bool,
        Field(
            description="a role that can unblind, give such a role or vouch for its holder takes two people, and so does a "
            "reset of whoever holds a role"
        ),
    ] = False
    passkey_rp_id: Annotated[
        str | None, Field(description="domain for which devices keep passkeys, `snose.example.org`; with the next one")
    ] = None
    passkey_origin: Annotated[
        str | None, Field(description="address of the page that asks for them, `https://snose.example.org`")
    ] = None
    provider_hosts: Annotated[
        str,
        Field(description="hosts of outside issuers that lie in a private network, with commas; all others are public"),
    ] = ""
    provider_ca_file: Annotated[
        Path | None, Field(description="authority that outside issuers are proved to; default: the system's own")
    ] = None
    session_hours: Annotated[int, Field(ge=1, le=24, description="how long a person's session lasts")] = 8
    session_idle_minutes: Annotated[
        int, Field(ge=5, le=60, description="minutes without an act after which a person's session is over")
    ] = 15
    access_review_days: Annotated[
        int, Field(ge=1, le=3660, description="days after which the access of a study's people is reviewed again")
    ] = 180
    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on")] = 8000
    public_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[A-Za-z0-9.\[\]:-]+(/[A-Za-z0-9._~/-]*)?$",
            description="address at which callers reach the service; default: host and port, by plain HTTP",
        ),
    ] = None
    behind_tls_proxy: Annotated[bool, Field(description="a proxy that speaks TLS stands before the service")] = False
    workers: Annotated[int, Field(ge=1, le=64, description="worker processes; SQLite takes one only")] = 1
    threads: Annotated[int, Field(ge=1, le=64, description="threads of a worker, and connections of its pool")] = 8
    connections: Annotated[
        int, Field(ge=8, description="connections of a worker; past them the client waited for longest is hung up on")
    ] = 512
    receive_seconds: Annotated[
        int, Field(ge=1, description="how long a request may take to arrive, or a client to take a part of an answer")
    ] = 60
    metrics_port: Annotated[
        int | None, Field(ge=0, le=65535, description="port of the Prometheus metrics; none: no metrics")
    ] = None

    def url(self) -> str:
        """Return the database URL, from its file when one is named."""
        return self.database_url_file.read_text().strip() if self.database_url_file else self.database_url

    def base_url(self) -> str:
        """Return the address at which callers reach the service, without a slash at its end."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    def plain_host(self) -> str | None:
        """Return the address at which plain HTTP would leave the machine; None on loopback or behind a proxy with TLS."""
        try:
            is_loopback = ip_address(self.host).is_loopback
        except ValueError:
            is_loopback = self.host == "localhost"
        return None if is_loopback or self.behind_tls_proxy else self.host

    def session_length(self) -> timedelta:
        """Return how long a person's session lasts."""
        return timedelta(hours=self.session_hours)

    def session_idle(self) -> timedelta:
        """Return after which time without an act a person's session is over; never shorter than a second proof is fresh."""
        return timedelta(minutes=self.session_idle_minutes)

    def access_review_period(self) -> timedelta:
        """Return how long after an access review the next one is due."""
        return timedelta(days=self.access_review_days)

    def password_max_age(self) -> timedelta | None:
        """Return the age at which a password has expired."""
        return timedelta(days=self.password_max_age_days) if self.password_max_age_days else None
