"""How long the offline verifier takes for a long trail, alone in its process as an inspector runs it."""

import base64
import hashlib
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.encoding import canonical_json
from app.domain.merkle import Frontier, leaf_hash
from app.domain.notes import Checkpoint

_NAME = "snose/00000000-0000-4000-8000-000000000000"
_ORIGIN = f"{_NAME}/BENCH"


def measure_verification(folder: Path, entries: int) -> dict[str, float]:
    """Return the seconds for a trail of so many entries, made up of allocations and signed with a key of its own."""
    export = folder / "export.jsonl"
    _write_export(export, entries)
    verifier = str(files("app") / "verifier.py")
    begun = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-I", verifier, "trail", str(export)], check=False, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begun
    if finished.returncode:
        raise RuntimeError(finished.stdout[-2000:] + finished.stderr[-2000:])
    return {"entries": entries, "seconds": seconds, "us_per_entry": seconds / entries * 1e6}


def _write_export(path: Path, entries: int) -> None:
    rows = path.with_suffix(".rows")
    frontier = Frontier()
    with rows.open("wb") as file:
        for index in range(entries):
            body = canonical_json(_entry(index))
            leaf = leaf_hash(body)
            frontier, _ = frontier.append(leaf)
            file.write(b'{"body":%b,"leaf_hash":"%b"}\n' % (body, leaf.hex().encode()))
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key().public_bytes_raw()
    key_id = hashlib.sha256(_NAME.encode() + b"\n\x01" + public).digest()[:4]
    text = Checkpoint(_ORIGIN, entries, frontier.root()).text()
    signature = base64.b64encode(key_id + key.sign(text.encode())).decode()
    verification_key = base64.b64encode(b"\x01" + public).decode()
    header = {
        "snose_trail_export": 1,
        "origin": _ORIGIN,
        "size": entries,
        "checkpoint": f"{text}\n\u2014 {_NAME} {signature}\n",
        "keys": [f"{_NAME}+{key_id.hex()}+{verification_key}"],
        "handovers": [],
    }
    with path.open("wb") as whole, rows.open("rb") as file:
        whole.write(canonical_json(header) + b"\n")
        while block := file.read(1 << 20):
            whole.write(block)
    rows.unlink()


def _entry(index: int) -> dict[str, object]:
    return {
        "v": 1,
        "log": _ORIGIN,
        "index": index,
        "at": f"2026-11-{index * 28 // 100_000_000 + 1:02}T08:00:00.000000+00:00",
        "actor": "EDC system",
        "role": "edc_client",
        "organisation": None,
        "client": "EDC system",
        "action": "allocation:create",
        "outcome": "done",
        "target": {"subject_id": f"01-{index:07}", "site_code": "01"},
        "before": None,
        "after": {
            "randomization_number": f"R{index:07}",
            "kit_code": f"K{index:07}",
            "strata": {},
            "consent_confirmed": True,
            "eligibility_confirmed": True,
            "reported_user": "nurse.li",
        },
        "request_id": f"{index:032x}",
        "restricted": None,
    }
