"""What doubting an attack costs: `--checks none`, `basic` and `full`; interleaved medians.

    python tools/bench_checks.py > results/bench_checks.json       about 15 minutes on two cores
    python tools/bench_checks.py --limit 200 --repetitions 1 --attacks pgd

The MNIST net with BN of table6_matched (seed 0: results/paper/dd15bd2a8efa), pixel units, box [0, 1], eps 8/255.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import PAIR, arguments, interleave, print_report, summarize

from bn_vuln.config import Attack, Evaluation
from bn_vuln.evaluation import classifier
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.runtime import backend

ATTACKS = {
    "pgd": {"attack": "pgd"},
    "pgd_last": {"attack": "pgd", "keep": "last", "steps": 100},
    "apgd-ce": {"attack": "apgd-ce"},
    "strong": {"attack": "strong"},
}
LEVELS = ("none", "basic", "full")


def contenders(options: Attack, evaluation: Evaluation, flags: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """The attack at every level, each with an evaluator of its own, whose searches are compiled in the first turn."""
    subject = classifier.from_run(PAIR["batch"])

    def at(level: Any) -> Callable[[], None]:
        evaluator = Evaluator(subject, evaluation, checks=level)

        def run() -> None:
            record = evaluator.run(options).record
            flags[level] = {"accuracy": record.accuracy, "flags": [flag.check for flag in record.flags]}

        return run

    return {level: at(level) for level in LEVELS}


def main() -> None:
    parser = arguments(__doc__, limit=1000)
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    args = parser.parse_args()
    backend.tensorflow()
    results = {}
    for name in args.attacks:
        flags: dict[str, Any] = {}
        options = Attack(eps=8 / 255, **ATTACKS[name])
        seconds = interleave(contenders(options, Evaluation(limit=args.limit), flags), args.repetitions)
        results[name] = summarize(seconds, "none", **flags)
    print_report(results, args.repetitions, examples=args.limit, eps=8 / 255)


if __name__ == "__main__":
    main()
