"""`bnvuln config`: JSON schemas of config files, and every field of a config."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click
import cloup

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.config.schema import Kind

EXAMPLES = """
  bnvuln config schema > schema.json
  # and above an experiment: # yaml-language-server: $schema=schema.json
  bnvuln config fields                  # all that --set takes
  bnvuln config fields attack --json
"""


@o.command("schema", EXAMPLES)
@cloup.option(
    "--kind",
    type=click.Choice(["experiment", "base", "suite", "plan", "cell"]),
    default="experiment",
    show_default=True,
    help="Kind of file; base: what experiments extend; cell: the training of one model.",
)
def _schema(kind: Kind) -> None:
    """Print the JSON schema of a kind of file.

    It has the description, type, default and older name of every field. An editor with a YAML language server completes
    and checks files by it.
    """
    from bn_vuln.config import schema

    o.print_json(schema.json_schema(kind))


@o.command("fields", EXAMPLES)
@cloup.argument("name", default="cell", metavar="[NAME]")
@o.json_option
def _fields(name: str, as_json: bool) -> None:
    """Print every field of a config.

    Each has its key as --set takes it, what it is, its type and its default. NAME is cell (the training of a model), if
    it is not given; or experiment, suite, attack, evaluate-options, audit-options, table and so on.
    """
    from bn_vuln.auditing.options import AuditOptions
    from bn_vuln.config import fields, nearest
    from bn_vuln.errors import UsageError
    from bn_vuln.evaluation.settings import EvaluateOptions

    configs = fields.configs(AuditOptions, EvaluateOptions)
    if name not in configs:
        raise UsageError(f"no config {name!r} (known: {', '.join(configs)}){nearest(name, configs)}")
    rows = list(fields.field_rows(configs[name]))
    formatter = click.HelpFormatter(width=120)
    formatter.write_dl([(row.key, row.text) for row in rows])
    plain = {"config": name, "fields": [asdict(row) for row in rows]}
    o.output(as_json, plain, formatter.getvalue().rstrip())


@o.group("config", EXAMPLES, _schema, _fields)
def config() -> None:
    """Print the JSON schema of a kind of config file, for editors, or the fields of a config."""
