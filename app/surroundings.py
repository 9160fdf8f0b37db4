"""What a process of the service stands on: its database, keys and sinks.

Apart from `app.main`, so that a command, or the parent of the workers, need not load the API to know where its database is: that
halves the time from `snose serve` to the first worker.
"""

import ssl
from typing import Final
from urllib.parse import urlsplit

from app.domain.entropy import Entropy
from app.domain.notes import NoteMalformed, parse_witness_key
from app.domain.notices import check_email
from app.domain.words import Mode
from app.errors import Invalid, UnsafeSetting
from app.identity.passkeys import RelyingParty
from app.sealing.providers import KeyFileProvider, KeyProvider
from app.sealing.recipients import encrypt_to
from app.sealing.vault import AppRole, TokenFile, VaultTransitProvider
from app.services.context import Clock, Limits, SystemEntropy, system_clock
from app.services.desk import EmergencyDesk
from app.services.startup import Surroundings
from app.settings import KeyProviderKind, Settings
from app.storage.database import Database
from app.storage.envelope_folder import EnvelopeFolder
from app.storage.mail_client import MailClient, MailServer
from app.storage.provider_client import ProviderClient
from app.storage.sink import FileSink
from app.storage.witness_client import WitnessClient

_MAIL_PORTS: Final = {"smtp": 587, "smtps": 465}
_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def surroundings(
    settings: Settings,
    clock: Clock = system_clock,
    entropy: Entropy | None = None,
    list_entropy: Entropy | None = None,
) -> Surroundings:
    """Return what the settings say a deployment stands on; tests hand in a clock and seeded entropy."""
    chance = entropy or SystemEntropy()
    return Surroundings(
        database=Database(settings.url(), settings.threads),
        provider=key_provider(settings, chance),
        sink=FileSink(settings.checkpoint_file),
        limits=Limits(
            session_length=settings.session_length(),
            session_idle=settings.session_idle(),
            password_max_age=settings.password_max_age(),
            second_factor_required=settings.second_factor_required,
            two_person_grants=settings.two_person_grants,
            hashing_places=max(1, settings.threads // 2),
            provider_places=max(1, settings.threads // 4),
            access_review_period=settings.access_review_period(),
            backup_contact=settings.backup_contact,
            public_url=settings.base_url(),
            relying_party=_relying_party(settings),
        ),
        clock=clock,
        list_entropy=list_entropy or SystemEntropy(),
        entropy=chance,
        witness=_witness(settings),
        desk=_desk(settings),
        mail=_mail(settings),
        issuers=_issuers(settings),
    )


def _relying_party(settings: Settings) -> RelyingParty | None:
    """Return for whom devices keep passkeys, None where the settings name nobody.

    Raises ``UnsafeSetting`` for what is half said, for a page of another domain, and for one without TLS, which no browser would
    let ask; on the own machine a browser does, and so does a test deployment.
    """
    rp_id, origin = settings.passkey_rp_id, settings.passkey_origin
    if rp_id is None and origin is None:
        return None
    if rp_id is None or origin is None:
        message = "SNOSE_PASSKEY_RP_ID and SNOSE_PASSKEY_ORIGIN belong together: set both, or neither."
        raise UnsafeSetting(message)
    scheme, _, host = origin.partition("://")
    name, _, port = host.partition(":")
    is_of_domain = bool(rp_id) and (name == rp_id or name.endswith(f".{rp_id}"))
    is_safe = scheme == "https" or (scheme == "http" and name == "localhost" and settings.mode is Mode.TEST)
    if not (is_of_domain and is_safe and origin == origin.lower() and (port.isdigit() or ":" not in host)):
        message = (
            "SNOSE_PASSKEY_ORIGIN is the address of the service's page without a path, https://host or https://host:port, "
            "and its host is SNOSE_PASSKEY_RP_ID or lies below it."
        )
        raise UnsafeSetting(message)
    return RelyingParty(rp_id, origin)


def _mail(settings: Settings) -> MailClient | None:
    """Return the mail server that the settings name; raise ``UnsafeSetting`` for what is half said.

    TLS always, but to this machine itself, where nothing leaves it.
    """
    if settings.smtp_url is None:
        return None
    try:
        url = urlsplit(settings.smtp_url)
        host, port = url.hostname or "", url.port
        check_email(settings.smtp_sender)
    except (ValueError, Invalid):
        message = "SNOSE_SMTP_URL is no address, or SNOSE_SMTP_SENDER no e-mail address."
        raise UnsafeSetting(message) from None
    if url.scheme not in _MAIL_PORTS or not host or url.username or url.path not in {"", "/"}:
        message = "SNOSE_SMTP_URL is the address of the mail server, smtp://host:587 or smtps://host:465."
        raise UnsafeSetting(message)
    if bool(settings.smtp_username) != (settings.smtp_password_file is not None):
        message = "Set SNOSE_SMTP_USERNAME and SNOSE_SMTP_PASSWORD_FILE, or neither."
        raise UnsafeSetting(message)
    try:
        password = settings.smtp_password_file.read_text().strip() if settings.smtp_password_file else ""
        at_once = url.scheme == "smtps"
        is_here = host in _THIS_MACHINE and not at_once and settings.smtp_ca_file is None
        tls = None if is_here else ssl.create_default_context(cafile=settings.smtp_ca_file)
    except (OSError, ValueError):
        message = "SNOSE_SMTP_PASSWORD_FILE or SNOSE_SMTP_CA_FILE cannot be read."
        raise UnsafeSetting(message) from None
    server = MailServer(
        host, port or _MAIL_PORTS[url.scheme], at_once, settings.smtp_sender, settings.smtp_username, password, tls
    )
    return MailClient(server)


def _issuers(settings: Settings) -> ProviderClient:
    """Return by which outside issuers are asked; raise ``UnsafeSetting`` for an authority that cannot be read."""
    try:
        file = settings.provider_ca_file
        tls = ssl.create_default_context(cafile=file) if file is not None else None
    except (OSError, ValueError):
        message = "SNOSE_PROVIDER_CA_FILE cannot be read."
        raise UnsafeSetting(message) from None
    hosts = frozenset(host.strip().lower() for host in settings.provider_hosts.split(","))
    return ProviderClient(may_stay_here=settings.mode is Mode.TEST, inside=hosts, tls=tls)


def _desk(settings: Settings) -> EmergencyDesk | None:
    """Return the emergency desk that the settings name; raise ``UnsafeSetting`` for what is half said or no key.

    The folder is looked at by `snose doctor` alone: a back-up that is not there must not keep the service down (rule D5).
    """
    folder, key = settings.envelope_folder, settings.envelope_desk_key
    if folder is None and key is None:
        return None
    try:
        encrypt_to(key or "", b"", b"")
    except Invalid:
        message = "SNOSE_ENVELOPE_DESK_KEY is not the public key that `snose envelope keys` shows."
        raise UnsafeSetting(message) from None
    if folder is None:
        message = "SNOSE_ENVELOPE_DESK_KEY is set and SNOSE_ENVELOPE_FOLDER is not: set both, or neither."
        raise UnsafeSetting(message)
    return EmergencyDesk(key or "", EnvelopeFolder(folder))


def _witness(settings: Settings) -> tuple[WitnessClient, str] | None:
    """Return the witness that the settings name; raise ``UnsafeSetting`` for what is half said or no key."""
    if settings.witness_url is None and settings.witness_key is None:
        return None
    try:
        key = parse_witness_key(settings.witness_key or "")
    except NoteMalformed as error:
        message = f"SNOSE_WITNESS_KEY is not the verification key of a witness: {error}."
        raise UnsafeSetting(message) from None
    if not (settings.witness_url or "").startswith(("http://", "https://")):
        message = "SNOSE_WITNESS_URL is the address of the witness, http://host:port or https://host."
        raise UnsafeSetting(message)
    return WitnessClient(settings.witness_url or ""), key.text()


def key_provider(settings: Settings, entropy: Entropy) -> KeyProvider:
    """Return who keeps the key above all keys, as the settings say; raise ``UnsafeSetting`` for what cannot be or is half said."""
    if settings.key_provider is KeyProviderKind.FILE:
        return KeyFileProvider(settings.key_file, entropy)
    token_file, role_id, secret_id_file = (
        settings.vault_token_file,
        settings.vault_role_id,
        settings.vault_secret_id_file,
    )
    if token_file is not None and role_id is None and secret_id_file is None:
        known_by: TokenFile | AppRole = TokenFile(token_file)
    elif token_file is None and role_id is not None and secret_id_file is not None:
        known_by = AppRole(role_id, secret_id_file)
    else:
        message = "Set SNOSE_VAULT_TOKEN_FILE, or SNOSE_VAULT_ROLE_ID with SNOSE_VAULT_SECRET_ID_FILE, and not both."
        raise UnsafeSetting(message)
    return VaultTransitProvider(
        settings.vault_addr, known_by, settings.vault_mount, settings.vault_key, settings.vault_ca_file
    )
