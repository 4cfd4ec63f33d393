"""What the benchmarks share: interleaved repetitions, medians, ratios, one JSON object.

Machines are noisy, so contenders take turns within one process and only their ratios are quoted.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from bn_vuln import backend


def interleave(contenders: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each contender, which take turns `repetitions` times after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, run in contenders.items():
            begun = time.perf_counter()
            run()
            if repetition:
                seconds[name].append(time.perf_counter() - begun)
            print(f"{repetition}/{repetitions} {name}: {time.perf_counter() - begun:.2f} s", file=sys.stderr)
    return seconds


def summarize(seconds: dict[str, list[float]], base: str, **extra: dict[str, Any]) -> dict[str, Any]:
    """Median, minimum and maximum of each contender, and its median as a multiple of `base`'s."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "median_s": round(medians[name], 3),
            "min_s": round(min(values), 3),
            "max_s": round(max(values), 3),
            f"times_{base}": round(medians[name] / medians[base], 2),
            **extra.get(name, {}),
        }
        for name, values in seconds.items()
    }


def print_report(results: dict[str, Any], repetitions: int, **settings: Any) -> None:
    """The benchmark's one JSON object, with the machine and the versions."""
    report = {
        "device": backend.device_name(),
        "versions": backend.versions(),
        "repetitions": repetitions,
        "settings": settings,
        "results": results,
    }
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")
