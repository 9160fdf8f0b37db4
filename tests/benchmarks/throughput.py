"""Allocations a second over HTTP, beside the same statements without the service, in turns in one run."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from app.cli.trial import sleep_until_next_step
from tests.benchmarks import statements
from tests.databases import PostgresServer
from tests.reliability import load
from tests.reliability.service import SITES, OpenStudy, Service, Sponsor

KITS_PER_ARM: Final = 20
"""Forty kits in a consignment, two arms; one is drawn from until an arm is at the floor of three."""
_FROM_A_CONSIGNMENT: Final = 28


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    allocations: int
    """In one round with several clients; a single client sends a quarter of it."""
    used_kits: int
    breaks: int
    lone_breaks: int
    slots: int
    entries: int


FULL: Final = Size(3, 960, 20_000, 20, 400, 1_000_000, 1_000_000)
QUICK: Final = Size(2, 192, 400, 4, 40, 20_000, 20_000)
CLIENTS: Final = (1, 8, 32)


@contextmanager
def running(url: str, workers: int) -> Iterator[tuple[Service, Sponsor]]:
    """Give a running service on an empty database."""
    with tempfile.TemporaryDirectory(prefix="snose-bench-") as folder, Service(Path(folder), url, workers) as service:
        issued = service.create()
        service.start()
        sponsor = Sponsor(service, issued)
        try:
            yield service, sponsor
        finally:
            sponsor.close()


def stocked(sponsor: Sponsor, code: str, allocations: int) -> OpenStudy:
    """Return a study of eight strata with 40 kits in each of as many consignments as the run needs."""
    at_site = -(-allocations // len(SITES)) + 8
    # Twice the slots: pgbench takes its sites by chance.
    return sponsor.open_study(code, SITES, 2 * at_site, KITS_PER_ARM, at_site // _FROM_A_CONSIGNMENT + 1)


def measure_postgresql(server: PostgresServer, size: Size, studies: int) -> dict[str, Any]:
    """Return rates and latencies at each number of clients, over so many studies, and pgbench's in the same turns."""
    needed = size.rounds * sum(_share(size, clients) for clients in CLIENTS) // studies + 32
    with server.database() as url, running(url, 2) as (service, sponsor):
        opened = [stocked(sponsor, f"B{studies}-{number}", needed) for number in range(studies)]
        service.stop()
        scripts = []
        for number, study in enumerate(opened):
            scripts.append(service.folder / f"{number}.sql")
            statements.write_script(statements.record_allocation(service, study), scripts[-1], url)
        copied = server.create_database(template=url.partition("?")[0].rpartition("/")[2])
        bare = server.url_for(copied)
        statements.prepare_for_pgbench(bare)
        service.start()
        try:
            return _in_turns(
                service,
                opened,
                size,
                lambda clients: statements.run_pgbench(server, bare, scripts, clients, _share(size, clients)),
            )
        finally:
            server.drop_database(copied)


def measure_sqlite(size: Size) -> dict[str, Any]:
    """Return rates and latencies at each number of clients, and those of the bare loop in the same turns."""
    needed = size.rounds * sum(_share(size, clients) for clients in CLIENTS) + 32
    with tempfile.TemporaryDirectory(prefix="snose-bench-") as folder:
        file = Path(folder) / "snose.db"
        with running(f"sqlite:///{file}", 1) as (service, sponsor):
            study = stocked(sponsor, "BENCH", needed)
            service.stop()
            recorded = statements.record_allocation(service, study)

            def bare_rate(clients: int) -> float:
                copied = Path(folder) / "bare.db"
                shutil.copyfile(clean, copied)
                return statements.run_bare_loop(recorded, copied, min(_share(size, clients), 8 * _FROM_A_CONSIGNMENT))

            clean = Path(folder) / "clean.db"
            shutil.copyfile(file, clean)
            service.start()
            return _in_turns(service, [study], size, bare_rate)


def _share(size: Size, clients: int) -> int:
    return size.allocations // 4 if clients == 1 else size.allocations


def _in_turns(
    service: Service, studies: list[OpenStudy], size: Size, bare_rate: Callable[[int], float]
) -> dict[str, Any]:
    _send(service, studies, "warm", 32, 8)
    seen: dict[int, list[tuple[load.Outcome, float]]] = {clients: [] for clients in CLIENTS}
    for turn in range(size.rounds):
        for clients in CLIENTS:
            outcome = _send(service, studies, f"{turn}-{clients}", _share(size, clients), clients)
            seen[clients].append((outcome, bare_rate(clients)))
    return {
        str(clients): {
            "rate": median(outcome.rate for outcome, _ in found),
            "p50_ms": median(outcome.percentile(50) for outcome, _ in found) * 1000,
            "p99_ms": median(outcome.percentile(99) for outcome, _ in found) * 1000,
            "bare_rate": median(bare for _, bare in found),
            "ratio": median(outcome.rate / bare for outcome, bare in found),
        }
        for clients, found in seen.items()
    }


def _send(service: Service, studies: list[OpenStudy], name: str, count: int, clients: int) -> load.Outcome:
    each = count // len(studies)
    lists = [load.requests_for(study, [f"{name}-{number}" for number in range(each)]) for study in studies]
    # The studies take turns.
    return load.run(service.port, [request for turn in zip(*lists, strict=True) for request in turn], clients)


# -- stock


def measure_stock(url: str, workers: int, size: Size) -> dict[str, float]:
    """Return rates with 40 and with 2,000 kits in a site's stock, and after many of its kits were used, at 8 clients."""
    count = size.allocations // 2
    with running(url, workers) as (service, sponsor):
        few = sponsor.open_study("FEW", SITES[:1], 2 * size.rounds * count, KITS_PER_ARM, size.rounds * count // 28 + 2)
        many = sponsor.open_study("MANY", SITES[:1], 2 * size.rounds * count, 1000, size.rounds * count // 1900 + 1)
        rates: dict[str, list[float]] = {"few": [], "many": [], "used": [], "fresh": []}
        for turn in range(size.rounds):
            for name, study in (("few", few), ("many", many)):
                rates[name].append(_send(service, [study], f"{turn}", count, 8).rate)
        # Two of a kind, of which one is used up first; then they take turns, as the machine's mood is the same for both only there.
        subjects = size.used_kits + 2 * size.rounds * count
        used, fresh = (
            sponsor.open_study(code, SITES[:1], subjects, subjects // 2 + count) for code in ("USED", "FRESH")
        )
        _send(service, [used], "used", size.used_kits, 8)
        for turn in range(size.rounds):
            for name, study in (("used", used), ("fresh", fresh)):
                rates[name].append(_send(service, [study], f"{turn}", count, 8).rate)
        return {
            "rate_40": median(rates["few"]),
            "rate_2000": median(rates["many"]),
            "ratio_2000_to_40": median(many / few for many, few in zip(rates["many"], rates["few"], strict=True)),
            "kits_used": size.used_kits,
            "rate_after_used": median(rates["used"]),
            "rate_at_start": median(rates["fresh"]),
            "ratio_after_to_start": median(
                used / fresh for used, fresh in zip(rates["used"], rates["fresh"], strict=True)
            ),
        }


# -- code breaks, start, memory


def measure_breaks(url: str, workers: int, size: Size) -> dict[str, float]:
    """Return the latencies of emergency code breaks with the file sink while subjects are being allocated."""
    with running(url, workers) as (service, sponsor):
        study = stocked(sponsor, "BREAK", size.breaks + 200)
        _send(service, [study], "subject", size.breaks, 4)
        over = threading.Event()
        beside = threading.Thread(target=_allocate_until, args=(service, study, over))
        beside.start()
        try:
            seconds = sorted([_break(sponsor, study, number) for number in range(size.breaks)])
        finally:
            over.set()
            beside.join()
        return {
            "breaks": len(seconds),
            "p50_ms": median(seconds) * 1000,
            "p99_ms": seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))] * 1000,
        }


def _allocate_until(service: Service, study: OpenStudy, over: threading.Event) -> None:
    requests = load.requests_for(study, [f"beside-{number}" for number in range(150)])
    connection = load.Connection(service.port)
    for request in requests:
        if over.wait(0.05):
            break
        connection.post(f"/v1/studies/{request.study}/allocations", request.token, request.content)
    connection.close()


def _break(sponsor: Sponsor, study: OpenStudy, number: int) -> float:
    """Return how long one break took; each takes a one-time code of its own, and people take turns."""
    trial = study.trial
    person = sponsor.investigators[number % len(sponsor.investigators)]
    if number and number % len(sponsor.investigators) == 0:
        sleep_until_next_step(trial.now())
    trial.prove(person)
    body = {"subject_id": f"subject-{number}", "reason_code": "serious_adverse_event"}
    headers = {"Authorization": f"Bearer {person.stepped_up}"}
    begun = time.perf_counter()
    trial.ask(None, "POST", f"{trial.study}/code-breaks", body, headers=headers)
    return time.perf_counter() - begun


def measure_start(url: str, workers: int) -> dict[str, float]:
    """Return seconds from the command to readiness, and the memory of a worker at rest, in MB."""
    with running(url, workers) as (service, _sponsor):
        service.stop()
        ready, memory = [], []
        for _ in range(3):
            ready.append(service.start())
            memory += [_resident(pid) for pid in service.worker_pids()]
            service.stop()
    return {"ready_s": median(ready), "worker_mb": max(memory)}


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6
