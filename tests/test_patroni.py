"""The production layout of PostgreSQL, `deploy/patroni.yml`: the settings on which it depends that nothing acknowledged is lost.

Patroni is not run here, for this workshop has none: what is asked of its settings is tested with two real servers in
`tests/reliability/test_failover.py` and `tests/reliability/test_uncertain_commit.py`.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import pytest
import yaml

FILE: Final = Path(__file__).resolve().parent.parent / "deploy" / "patroni.yml"
Layout = dict[str, Any]


def layout() -> Layout:
    """Return the file as Patroni reads it."""
    return cast("Layout", yaml.safe_load(FILE.read_text(encoding="utf-8")))


def faults_of(found: Layout) -> set[str]:
    """Return what of a layout could lose or give away something."""
    dcs, local = found["bootstrap"]["dcs"], found["postgresql"]
    parameters = {**dcs["postgresql"]["parameters"], **local.get("parameters", {})}
    is_on = {True, "on", "true", "1"}
    rules = {
        "no synchronous standby": dcs.get("synchronous_mode") is True and dcs.get("synchronous_node_count", 1) >= 1,
        "acknowledges without standby": dcs.get("synchronous_mode_strict") is True,
        "names its standbys past Patroni": "synchronous_standby_names" not in parameters,
        "not written through": all(
            parameters.get(name, "on") in is_on for name in ("fsync", "full_page_writes", "synchronous_commit")
        ),
        "promotes anybody": 0 < dcs.get("maximum_lag_on_failover", 0) <= 1 << 20,
        "two primaries": dcs["loop_wait"] + 2 * dcs["retry_timeout"] <= dcs["ttl"],
        "no watchdog": found.get("watchdog", {}).get("mode") in {"automatic", "required"},
        "no way back for a lost primary": dcs["postgresql"].get("use_pg_rewind") is True
        and (parameters.get("wal_log_hints") in is_on or "data-checksums" in found["bootstrap"]["initdb"]),
        "no standby to wait for": not found["tags"].get("nosync") and not found["tags"].get("nofailover"),
        "open to the network": all(
            line.split()[0] == "local" or (line.startswith("hostssl ") and line.endswith(" scram-sha-256"))
            for line in local["pg_hba"]
        ),
        "a password in the file": "password" not in str(found["postgresql"]["authentication"])
        and not re.search(r"password:\s*\S", FILE.read_text(encoding="utf-8")),
        "values in the log": parameters.get("log_statement") == "none"
        and parameters.get("log_parameter_max_length") == 0
        and parameters.get("log_parameter_max_length_on_error") == 0,
    }
    return {fault for fault, holds in rules.items() if not holds}


def test_settings_that_matter() -> None:
    """Synchronous and strict, written through, one primary, no password and no value in a log [C6, G4, custody "Beyond"]"""
    assert faults_of(layout()) == set()


BREAKING: Final[dict[str, Callable[[Layout], object]]] = {
    "no synchronous standby": lambda one: one["bootstrap"]["dcs"].pop("synchronous_mode"),
    "acknowledges without standby": lambda one: one["bootstrap"]["dcs"].update(synchronous_mode_strict=False),
    "names its standbys past Patroni": lambda one: one["bootstrap"]["dcs"]["postgresql"]["parameters"].update(
        synchronous_standby_names="*"
    ),
    "not written through": lambda one: one["postgresql"].update(parameters={"synchronous_commit": "local"}),
    "promotes anybody": lambda one: one["bootstrap"]["dcs"].update(maximum_lag_on_failover=1 << 30),
    "two primaries": lambda one: one["bootstrap"]["dcs"].update(ttl=20),
    "no watchdog": lambda one: one["watchdog"].update(mode="off"),
    "no way back for a lost primary": lambda one: one["bootstrap"]["dcs"]["postgresql"].pop("use_pg_rewind"),
    "no standby to wait for": lambda one: one["tags"].update(nosync=True),
    "open to the network": lambda one: one["postgresql"]["pg_hba"].append("host all all all trust"),
    "a password in the file": lambda one: one["postgresql"]["authentication"]["superuser"].update(password="x"),
    "values in the log": lambda one: one["bootstrap"]["dcs"]["postgresql"]["parameters"].pop("log_statement"),
}


@pytest.mark.parametrize("fault", BREAKING)
def test_layout_with_one_fault(fault: str) -> None:
    """The negative control: each rule notices what it is there for, and says so only then."""
    broken = copy.deepcopy(layout())
    BREAKING[fault](broken)
    assert faults_of(broken) == {fault}
