"""Every figure of the goals, in one command: a table, and a file with all figures.

    python -m tests.benchmarks [--quick] [--json FILE] [--only PART ...]

Ratios are of one run, in turns, on one machine; absolute figures show only its scale. Nothing here passes or fails.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.table import Table

from tests.benchmarks import throughput
from tests.benchmarks.emergency import measure_emergency
from tests.benchmarks.growth import measure_growth
from tests.benchmarks.lists import measure_kit_codes, measure_list
from tests.benchmarks.shares import measure_shares
from tests.benchmarks.throughput import FULL, QUICK, Size
from tests.benchmarks.verification import measure_verification
from tests.databases import PostgresServer, postgres_server

# What is asked of a ratio or a time: part, figure, floor and goal (less is better where the floor is above the goal).
ASKED = (
    ("postgresql, one study", ("8", "ratio"), 0.24, 0.50),
    ("postgresql, one study", ("8", "p99_ms"), 60, 20),
    ("postgresql, eight studies", ("8", "ratio"), 0.15, 0.30),
    ("sqlite, one study", ("8", "ratio"), 0.30, 0.60),
    ("stock, postgresql", ("ratio_2000_to_40",), 0.7, 0.95),
    ("stock, postgresql", ("ratio_after_to_start",), 0.75, 0.95),
    ("stock, sqlite", ("ratio_2000_to_40",), 0.7, 0.95),
    ("stock, sqlite", ("ratio_after_to_start",), 0.75, 0.95),
    ("code breaks", ("p99_ms",), 2000, 100),
    ("code breaks, alone", ("p99_ms",), 2000, 100),
    ("start", ("ready_s",), 5, 2),
    ("start", ("worker_mb",), 200, 120),
    ("growth", ("allocate", "ratio"), 1.5, 1.1),
    ("growth", ("assign kit", "ratio"), 1.5, 1.1),
    ("growth", ("read trail", "ratio"), 1.5, 1.1),
    ("growth", ("break code", "ratio"), 1.5, 1.1),
    ("sealing and trail", ("share",), 0.15, 0.05),
    ("list of a million", ("ratio",), 3, 1.5),
    ("list of a million", ("made",), 1, 0.2),
    ("a million kit codes", ("seconds",), 3, 1.7),
    ("verification of a million", ("seconds",), 30, 10),
)


def parts(server: PostgresServer, folder: Path, size: Size) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what can be measured, by name."""

    def on_postgresql(measure: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
        with server.database() as url:
            return measure(url, *arguments)

    return {
        "postgresql, one study": lambda: throughput.measure_postgresql(server, size, 1),
        "postgresql, eight studies": lambda: throughput.measure_postgresql(server, size, 8),
        "sqlite, one study": lambda: throughput.measure_sqlite(size),
        "stock, postgresql": lambda: on_postgresql(throughput.measure_stock, 2, size),
        "stock, sqlite": lambda: throughput.measure_stock(f"sqlite:///{folder / 'stock.db'}", 1, size),
        "code breaks": lambda: on_postgresql(throughput.measure_breaks, 2, size),
        "code breaks, alone": lambda: on_postgresql(measure_emergency, 2, size),
        "growth": lambda: dict(measure_growth(server, size)),
        "start": lambda: on_postgresql(throughput.measure_start, 2),
        "sealing and trail": lambda: on_postgresql(measure_shares, size.allocations // 4),
        "a million kit codes": lambda: measure_kit_codes(size.slots),
        "list of a million": lambda: dict(on_postgresql(measure_list, size.slots)),
        "verification of a million": lambda: dict(measure_verification(folder, size.entries)),
    }


def main(arguments: list[str]) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form, to see that everything runs")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--only", action="append", default=[], help="a part to be measured; all when left out")
    chosen = parser.parse_args(arguments)
    size = QUICK if chosen.quick else FULL
    console = Console(width=120)
    # The list is made in this process, whose output is the table.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    figures: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "size": size.__dict__,
    }
    with postgres_server() as server, tempfile.TemporaryDirectory(prefix="snose-bench-") as folder:
        for name, measure in parts(server, Path(folder), size).items():
            if chosen.only and name not in chosen.only:
                continue
            figures[name] = measure()
            console.print(_table(name, figures[name]))
    console.print(_verdicts(figures))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _table(name: str, figures: dict[str, Any]) -> Table:
    table = Table(title=name, title_justify="left")
    rows = figures if all(isinstance(value, dict) for value in figures.values()) else {"": figures}
    columns = list(next(iter(rows.values())))
    table.add_column("clients" if all(name.isdigit() for name in rows) and "" not in rows else "")
    for column in columns:
        table.add_column(column, justify="right")
    for clients, row in rows.items():
        table.add_row(clients, *(_short(row[column]) for column in columns))
    return table


def _verdicts(figures: dict[str, Any]) -> Table:
    table = Table(title="floors and goals", title_justify="left")
    for column in ("part", "figure", "seen", "floor", "goal", "reached"):
        table.add_column(column, justify="left" if column in {"part", "figure", "reached"} else "right")
    for part, path, floor, goal in ASKED:
        if part not in figures:
            continue
        seen: Any = figures[part]
        for step in path:
            seen = seen[step]
        is_less = floor > goal
        reached = next(
            (word for word, bar in (("goal", goal), ("floor", floor)) if (seen <= bar if is_less else seen >= bar)),
            "below the floor",
        )
        table.add_row(part, " ".join(path), _short(seen), str(floor), str(goal), reached)
    return table


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main(sys.argv[1:])
