"""Pages of the site that are made from the code and from the records.

    python tools/make_docs.py            # write the table of experiments in README.md again
    python tools/make_docs.py --check    # exit with 1 where it is out of date

It is also a hook of MkDocs (mkdocs.yml): `mkdocs build` adds what `pages` returns to the site. These pages are
never files of the repository. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml
from bn_vuln.cli.main import COMMANDS, bnvuln

from bn_vuln import config
from bn_vuln.config.fields import field_rows
from bn_vuln.experiments import catalog
from bn_vuln.records import open_store
from bn_vuln.reporting import pages as reports
from bn_vuln.reporting import summary, tables
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.reporting.figures import style
from bn_vuln.runtime.files import atomic_write

ROOT = Path(__file__).parents[1]
NBSP = "\N{NO-BREAK SPACE}"
BEGIN, END = "<!-- experiments: made by tools/make_docs.py -->", "<!-- end -->"
BENCHMARK = re.compile(r"^<!-- benchmark: (\S+) -->$", re.M)
TABLE = re.compile(r"^<!-- table: (\S+): (.+) -->$", re.M)
KINDS = {"paper": "The paper's experiments", "beyond": "Beyond the paper"}
ELSEWHERE = "runs where weights and data are"  # of experiments on nets with published weights, which are not here
# Folders of results. `posthoc` has nets with ids of `paper`, trained on another machine: their last digits differ.
STORES = ("paper", "beyond", "posthoc")


# ---------------------------------------------------------------- results


@cache
def measured() -> dict[str, Results]:
    """The published experiments by name, with their numbers."""
    return {name: results for folder in STORES for name, results in _measured_in(folder).items()}


@cache
def _measured_in(folder: str) -> dict[str, Results]:
    store = open_store(ROOT / "results" / folder)
    return {experiment.name: aggregate(experiment, store) for experiment in store.experiments()}


def experiment_pages() -> dict[str, str | bytes]:
    """A page for each experiment that ships, measured or not, and its figures."""
    found: dict[str, str | bytes] = {}
    for kind in KINDS:
        for name in experiment_names(kind):
            results = measured().get(name)
            found |= _measured_page(name, results) if results else {f"results/{name}.md": _planned_page(name)}
    return found


def _measured_page(name: str, results: Results) -> dict[str, str | bytes]:
    from bn_vuln.reporting import figures

    experiment = results.experiment
    found: dict[str, str | bytes] = {}
    parts = [f"# {experiment.title}", f"**Claim.** {experiment.claim}", f"**Verdicts.** {summary.verdicts(results)}."]
    if experiment.scale != "full":
        parts.append(
            f'!!! note "A preview"\n    These numbers are of scale `{experiment.scale}`, smaller than that of '
            "the paper. They get no verdict."
        )
    if _notes(name):
        parts += ["## What it shows, and what differs", _notes(name)]
    for number, (figure, caption, svg) in enumerate(figures.draw(results), 1):
        path = f"results/figures/{name}-{figure or number}.svg"
        found[path] = svg
        parts += [f"![{experiment.title}]({path.removeprefix('results/')})", f"*{caption}*"]
    for table, legend in reports.tables_with_legends(results):
        parts += [f"## {table.title}", _table(tables.markdown_table(table)), _details(legend)]
    remarks = {row.remark: None for row in tables.claim_texts(results) if row.remark}
    if remarks:
        parts += ["## Reasons given in the config", *(f"- {remark}" for remark in remarks)]
    parts += ["## Settings", *(f"- {note}" for note in experiment.notes)]
    facts = [f"| {key} | {_inline(value, code=key == 'Command')} |" for key, value in summary.summary_rows(results)]
    parts.append("\n".join(["| | |", "|---|---|", *facts]))
    parts.append(_config_block(config.to_yaml(experiment), "The whole config, with every default"))
    return {f"results/{name}.md": "\n\n".join(parts) + "\n", **found}


def _details(legend: list[tuple[str, str]]) -> str:
    """A legend, folded up."""
    lines = [f"    - **{_inline(term)}**: {_inline(text)}" for term, text in legend]
    return "\n".join(['??? note "What is in this table"', "", *lines])


def _table(text: str) -> str:
    """A Markdown table of a report: marks of notes are no links, and numbers stay on one line."""
    text = re.sub(r"\[(\d[\d, ]*)\]", r"\\[\1\\]", text)
    return re.sub(r" ± (\S+)( (?=\(\d+\)))?", lambda m: f"{NBSP}±{NBSP}{m[1]}{NBSP if m[2] else ''}", text)


def experiment_names(kind: str) -> list[str]:
    """The experiments of a kind, table2 before table13."""
    return sorted(
        catalog.names(kind), key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)]
    )


def _notes(name: str) -> str:
    """What a person has to say of an experiment."""
    path = ROOT / "docs" / "results" / "notes" / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _planned_page(name: str) -> str:
    """The page of an experiment that has not been run."""
    experiment = catalog.experiment(name)
    costs = ", ".join(f"{scale} {text}" for scale, text in experiment.cost.items())
    parts = [
        f"# {experiment.title}",
        f"**Claim.** {experiment.claim}",
        f"**Verdict.** {_state(experiment).capitalize()}.",
        "## Settings",
        *([_notes(name)] if _notes(name) else []),
        *(f"- {note}" for note in experiment.notes),
        f"| | |\n|---|---|\n| Command | `bnvuln reproduce {name}` |\n| Cost | {costs or 'not estimated'} |\n"
        f"| Source | {experiment.source} |",
        _config_block(config.to_yaml(experiment), "The whole config, with every default"),
    ]
    return "\n\n".join(parts) + "\n"


def _state(experiment: config.Experiment) -> str:
    """Why an experiment has no verdict."""
    return ELSEWHERE if experiment.base.get("weights") else "not run"


def _config_block(text: str, title: str) -> str:
    body = "\n".join(f"    {line}" for line in f"```yaml\n{text.strip()}\n```".splitlines())
    return f'??? note "{title}"\n\n{body}'


def overview() -> str:
    """The page that all results are found from."""
    lines = [
        "# Results",
        "Every number here was measured with this code and has a record, which you can read and make again "
        "([how](made.md)). A verdict says whether a claim of the paper is found here "
        "([the rules](../method/statistics.md)).",
        "The numbers behind each verdict are on the page of the experiment, and together in [all claims](claims.md).",
    ]
    for kind, title in KINDS.items():
        rows = [_overview_row(name) for name in experiment_names(kind)]
        lines += [f"## {title}", "\n".join(["| experiment | claim | verdict |", "|---|---|---|", *rows])]
    return "\n\n".join(lines) + "\n"


def _overview_row(name: str) -> str:
    results = measured().get(name)
    experiment = results.experiment if results else catalog.experiment(name)
    verdict = summary.verdicts(results) if results else _state(experiment)
    return f"| [{_inline(experiment.title)}]({name}.md) | {_inline(experiment.claim)} | {verdict} |"


def claims_page() -> str:
    """Every claim of every experiment beside ours."""
    lines = [
        "# All claims",
        "Accuracies in percent, differences in percentage points, ± SEM over n seeds; n is in brackets. "
        "The reasons of differences are on the pages of the experiments.",
    ]
    for kind, title in KINDS.items():
        lines.append(f"## {title}")
        for name in experiment_names(kind):
            rows = (
                [row for row in tables.claim_texts(measured()[name]) if row.verdict != "context"]
                if name in measured()
                else []
            )
            if rows:
                table = [
                    f"| {_claim(row)} | {row.under} | {row.published} | {row.ours} | {row.verdict} |" for row in rows
                ]
                head = ["| what | under | claimed | measured ± SEM (n) | verdict |", "|---|---|---|---|---|"]
                lines += [f"### [{measured()[name].experiment.title}]({name}.md)", _table("\n".join([*head, *table]))]
    return "\n\n".join(lines) + "\n"


def _claim(row: tables.ClaimText) -> str:
    place = ", ".join(tables.describe_keys(row.where, named=True))
    return f"{place}: {row.quantity}" if place else row.quantity


def experiments_table() -> str:
    """The table of README.md: what was run in full and judged; then the others, by name."""
    rows, others = [], []
    for name, results in measured().items():
        folder = next(folder for folder in reversed(STORES) if name in _measured_in(folder))
        link = f"[{name}](results/{folder}/report/{catalog.file_stem(results.experiment)}.md)"
        if {comparison.verdict for comparison in results.comparisons} <= {"preview", "context"}:
            others.append(link)
        else:
            title = results.experiment.title.partition(": ")[2] or results.experiment.title
            rows.append(f"|{link}|{title}|{summary.verdicts(results)}|")
    head = ["|experiment|claim about|verdicts|", "|---|---|---|"]
    planned = [name for name in experiment_names("paper") if name not in measured()]
    elsewhere = [
        f"[{name}](configs/paper/{name}.yaml)" for name in planned if _state(catalog.experiment(name)) == ELSEWHERE
    ]
    listed = [f"Without a verdict: {', '.join(others)}.", f"{ELSEWHERE.capitalize()}: {', '.join(elsewhere)}."]
    return "\n\n".join(["\n".join([*head, *rows]), *listed])


def with_table(readme: str) -> str:
    """README.md with its table written again."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{experiments_table()}\n{END}{rest.partition(END)[2]}"


# ---------------------------------------------------------------- benchmarks


def benchmark(name: str) -> str:
    """The tables of one committed benchmark."""
    found = json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))
    general = {key: found[key] for key in ("device", "versions", "repetitions")}
    lines = []
    for title, entry in found["results"].items():
        here = {key: entry.get(key, general[key]) for key in general}
        own = {key: value for key, value in entry.items() if key not in general}
        contenders = {key: value for key, value in own.items() if isinstance(value, Mapping)}
        facts = {key: value for key, value in own.items() if not isinstance(value, Mapping | list)}
        lines += [f"#### {title}", _benchmark_table(contenders)] if contenders else [f"#### {title}"]
        settings = [f"{here['repetitions']} repetitions", *(f"{key} {_plain(value)}" for key, value in facts.items())]
        lines.append("; ".join(settings) + ".")
    versions = ", ".join(f"{key} {value}" for key, value in found["versions"].items())
    settings = yaml.safe_dump(found.get("settings", {}), default_flow_style=True, width=10**6).strip()
    lines += [f"Machine: {found['device']}. Versions: {versions}. Settings: `{settings}`."]
    body = "\n\n".join(lines)
    inside = "\n".join(f"    {line}" if line else "" for line in body.splitlines())
    return f'??? abstract "All numbers of {name}"\n\n{inside}'


def _benchmark_table(contenders: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each contender, a column for each number that any of them has, with its standard error."""
    found = dict.fromkeys(key for entry in contenders.values() for key, v in entry.items() if _is_plain(v))
    columns = [key for key in found if not key.endswith("_sem")]
    rows = [
        [name.replace(" ", NBSP), *(_with_error(entry, key) for key in columns)] for name, entry in contenders.items()
    ]
    heads = ["", *(column.replace("_", " ") for column in columns)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows))


def _with_error(entry: Mapping[str, Any], key: str) -> str:
    error = entry.get(f"{key}_sem")
    return _plain(entry.get(key)) + (f"{NBSP}±{NBSP}{_plain(error)}" if error else "")


def _is_plain(value: Any) -> bool:
    return not isinstance(value, Mapping) and not (
        isinstance(value, list) and any(isinstance(v, Mapping) for v in value)
    )


def _plain(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _inline(str(value))


def benchmark_table(name: str, title: str) -> str:
    """One table of a committed benchmark."""
    return _benchmark_table(json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))["results"][title])


def simulated_sweep() -> bytes:
    """The figure of results/simulate_sweep.json: makespan and lost work along the mean time between failures."""
    found = json.loads((ROOT / "results" / "simulate_sweep.json").read_text(encoding="utf-8"))["results"]
    panels = {"times_ideal": "makespan / ideal", "lost_percent": "lost work, %"}
    titles = [title for title in found if "by mean hours between failures: " in title]
    with style.styled_pyplot() as plt:
        figure, every = plt.subplots(1, 2, figsize=(style.WIDTH, style.HEIGHT), layout="constrained")
        for axes, (key, label) in zip(every, panels.items(), strict=True):
            for title, (colour, marker) in zip(titles, style.ARM_STYLES, strict=False):
                axes.errorbar(
                    [float(hours) for hours in found[title]], [row[key] for row in found[title].values()],
                    yerr=[row[f"{key}_sem"] or 0.0 for row in found[title].values()], color=colour, marker=marker,
                    markersize=4, capsize=2, linewidth=1.2, label=title.partition(": ")[2],
                )  # fmt: skip
            axes.set_xscale("log")
            axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
            axes.set_xlabel("mean hours between two failures of a worker")
            axes.set_ylabel(label)
            axes.grid(color=style.GREY, alpha=0.25, linewidth=0.6)
            style.hide_spines(axes)
        every[0].set_ylim(bottom=1.0)
        every[1].set_yscale("log")
        every[1].legend(frameon=False)
        return style.render(figure, "svg")


# ---------------------------------------------------------------- reference


def cli_pages() -> dict[str, str]:
    """A page for each command, from the command itself."""
    lines = [
        "# Command line",
        "Every command has `--help`. Those that measure have `--json`: one object on standard output.",
    ]
    for title, commands in COMMANDS.items():
        lines += [f"## {title}", "\n".join(f"- [`bnvuln {name}`]({name}.md): {t}" for name, t in commands.items())]
    found = {"reference/cli/index.md": "\n\n".join(lines) + "\n"}
    context = click.Context(bnvuln, info_name="bnvuln")
    for name in bnvuln.commands:
        command = bnvuln.get_command(context, name)
        assert command is not None
        found[f"reference/cli/{name}.md"] = _command_page(
            command, click.Context(command, parent=context, info_name=name), 1
        )
    return found


def _command_page(command: click.Command, context: click.Context, level: int) -> str:
    usage = " ".join(piece for piece in command.collect_usage_pieces(context) if piece)
    parts = [
        f"{'#' * level} bnvuln {context.command_path.partition(' ')[2]}",
        f"```\n{context.command_path} {usage}\n```",
    ]
    parts.append(_dedented(command.help or ""))
    sections: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            group = getattr(parameter, "group", None)
            section = group.title if group else "Arguments" if isinstance(parameter, click.Argument) else "Options"
            sections.setdefault(section, []).append(f"`{record[0]}`\n:   {_escaped(record[1] or '')}".rstrip(": "))
    for title, entries in sections.items():
        parts += [f"{'#' * (level + 1)} {title}", *entries] if any(":   " in e for e in entries) else []
    if command.epilog:
        examples = _dedented(command.epilog).replace("\b", "").strip()
        parts += [f"{'#' * (level + 1)} Examples", "```sh\n" + _examples(examples) + "\n```"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            parts.append(_command_page(child, click.Context(child, parent=context, info_name=name), level + 1))
    return "\n\n".join(parts) + "\n"


def _dedented(text: str) -> str:
    return inspect.cleandoc(text.replace("\b\n", ""))


def _examples(epilog: str) -> str:
    lines = [line.strip() for line in epilog.splitlines()]
    return "\n".join(line for line in lines if line and line != "Examples:")


def _escaped(text: str) -> str:
    return re.sub(r"([*_<|\[])", r"\\\1", " ".join(text.split()))


CONFIGS = {
    "cell": "Trainings",
    "adversarial": "Adversarial training",
    "mend": "Changes of trained models",
    "arch": "Architectures",
    "normalization": "Normalizations",
    "perturbation": "Perturbations and evaluations",
    "measurement": "Measurements",
    "experiment": "Experiments",
    "column": "Derived columns",
    "evaluation.settings": "Options of all that evaluate",
    "auditing.options": "Options of an audit",
    "auditing.mend_request": "Options of a mend",
    "claim": "Claims",
}


def config_page() -> str:
    """All configs, from their classes: fields, types, defaults."""
    parts = [
        "# Configs",
        "A config is the whole experiment: all that changes a result is a field here. YAML files, command-line options "
        "and plain dicts in Python become these objects. Unknown keys and impossible values are refused, and the "
        "message names the nearest known key. A class that has a `name` or `kind` may be written as that alone: "
        "`normalization: batch` means `{name: batch}`. Numbers may be written as fractions, `8/255`. "
        "`bnvuln config fields` prints the tables, `bnvuln config schema` a JSON schema for editors.",
    ]
    for module, title in CONFIGS.items():
        parts += [f"## {title}", *(_class(model) for model in config_classes(module))]
    return "\n\n".join(parts) + "\n"


def config_classes(module: str) -> list[type[config.Frozen]]:
    """The public config classes of a module, by default of `bn_vuln.config`, in the order of its source."""
    every = vars(importlib.import_module(f"bn_vuln.{module if '.' in module else f'config.{module}'}"))
    own = [found for found in every.values() if isinstance(found, type) and issubclass(found, config.Frozen)]
    return [found for found in own if found.__module__.endswith(f".{module}") and not found.__name__.startswith("_")]


def _class(model: type[config.Frozen]) -> str:
    """A config class: what it is, and a table of its fields."""
    head = ["| field | type | default | what it is |", "|---|---|---|---|"]
    rows = [
        f"| `{row.key}` | {_code(row.type)} | {_code(row.default)} | {_inline(row.description)} |"
        for row in field_rows(model)
        if "." not in row.key
    ]
    text = "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(model) or "").split("\n\n"))
    return f"### {model.__name__}\n\n{text}\n\n" + ("\n".join([*head, *rows]) if rows else "")


def _code(text: str) -> str:
    """A type or a default in a table: as code, but for words of ours."""
    return text if text in ("required", "from other fields", "its defaults", "") else _inline(text, code=True)


# ---------------------------------------------------------------- all pages


def pages() -> dict[str, str | bytes]:
    """Every generated page and picture of the site, by its path in it."""
    return {
        "results/index.md": overview(),
        "results/claims.md": claims_page(),
        **experiment_pages(),
        **cli_pages(),
        "reference/config.md": config_page(),
        "guide/simulate_sweep.svg": simulated_sweep(),
    }


def _inline(text: str, *, code: bool = False) -> str:
    """Text for a cell of a Markdown table."""
    text = " ".join(text.split())
    return f"`{text}`" if code else text.replace("|", "\\|")


def on_config(config: Any) -> Any:
    """MkDocs: the experiments and commands go into the navigation."""
    for section in config["nav"]:
        if "Results" in section:
            for kind, title in KINDS.items():
                section["Results"].append({title: [f"results/{name}.md" for name in experiment_names(kind)]})
        if "Reference" in section:
            commands = [f"reference/cli/{name}.md" for name in bnvuln.commands]
            section["Reference"].insert(0, {"Command line": ["reference/cli/index.md", *commands]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """MkDocs: the generated pages join the written ones."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs: tables of benchmarks stand where a page names their file."""
    markdown = TABLE.sub(lambda found: benchmark_table(found[1], found[2]), markdown)
    return BENCHMARK.sub(lambda found: benchmark(found[1]), markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    made = with_table(text)
    if args.check:
        sys.exit(made != text)
    atomic_write(path, made)


if __name__ == "__main__":
    main()
