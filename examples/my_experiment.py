"""Run an experiment of your own and print its table; the same as `bnvuln reproduce examples/my_experiment.yaml`.

python examples/my_experiment.py [--scale full] [--runs runs]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import bn_vuln as bnv
from bn_vuln.reporting.tables import markdown_table, result_tables


def main() -> None:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=["smoke", "full"], default="full")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()

    # What is finished is kept: run it again after an interruption, and it goes on.
    results = bnv.reproduce(str(Path(__file__).parent / "my_experiment.yaml"), scale=args.scale, root=args.runs)
    for table in result_tables(results):
        print(f"\n{table.title}\n\n{markdown_table(table)}")


if __name__ == "__main__":
    main()
