"""The rows of text beside an experiment's numbers: verdicts, command, cost, scale, counts, machine, versions."""

from __future__ import annotations

from collections import Counter

from bn_vuln import records
from bn_vuln.experiments import catalog
from bn_vuln.reporting import footnotes
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.verdicts import PLURALS
from bn_vuln.runtime.progress import duration


def verdicts(*experiments: Results) -> str:
    """Count the verdicts of experiments in one line: `4 claims: 3 hold, 1 undecided`."""
    counts = Counter(comparison.verdict for results in experiments for comparison in results.comparisons)
    parts = [f"{n} {verdict if n == 1 else plural}" for verdict, plural in PLURALS.items() if (n := counts[verdict])]
    total = sum(counts[verdict] for verdict in PLURALS)
    if total < 2:
        return parts[0].replace("1 ", "1 claim: ") if parts else "no claim to judge"
    return f"{total} claims: {', '.join(parts)}"


def command(results: Results) -> str:
    """The command that makes an experiment again."""
    return catalog.command(results.experiment)


def summary_rows(results: Results) -> list[tuple[str, str]]:
    """Name and text of each row. Examples are counted for each evaluation that the table has columns of."""
    experiment = results.experiment
    cells = [run.cell for block in results.blocks for run in block.runs]
    weights = sorted({cell.weights for cell in cells if cell.weights})
    state = f"{results.cells} {'nets' if weights else 'trainings'}"
    state += f", {results.failed} failed to train" if results.failed else ""
    state += f", {results.missing} not run" if results.missing else ""
    damaged = records.describe_damaged(results.damaged)
    costs = ", ".join(f"{name} {text}" for name, text in experiment.cost.items())
    epochs = sorted({cell.train.epochs for cell in cells})
    columns = [experiment.columns[name] for name in experiment.table.columns]
    examples = [
        f"{footnotes.n_examples(results, measured) or 'none yet'} ({plan.column(plan.evaluation.split)})"
        for plan, measured in footnotes.columns_by_evaluation(results, columns)
    ]
    return [
        ("Verdict", verdicts(results)),
        ("Command", command(results)),
        *([("Cost", f"{costs}{'; others' if ' on ' in costs else ''} on two cores (--jobs 2)")] if costs else []),
        ("Source", experiment.source),
        *([("Weights", ", ".join(weights))] if weights else []),
        ("Images of" if weights else "Trained on", footnotes.trained_on(results)),
        ("Scale", experiment.scale),
        *([] if weights else [("Epochs", ", ".join(map(str, epochs)))]),
        ("Examples", ", ".join(examples)),
        ("State", state),
        *([("Damaged, counted as missing", "; ".join(damaged))] if damaged else []),
        ("Time", f"{duration(results.seconds)} of {'' if weights else 'training and '}evaluation"),
        ("Machine", "; ".join(results.devices) or "none yet"),
        ("Versions", "; ".join(results.versions) or "none yet"),
    ]
