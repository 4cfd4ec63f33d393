"""`bnvuln config`: JSON schemas of config files, and every field of a config."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from . import options as o

if TYPE_CHECKING:
    from bn_vuln.config.schema import Kind

EXAMPLES = """
Examples:

\b
  bnvuln config schema > schema.json
  # and above an experiment: # yaml-language-server: $schema=schema.json
  bnvuln config fields                  # all that --set takes
  bnvuln config fields attack --json
"""


@click.group("config", epilog=EXAMPLES)
def command() -> None:
    """Print the JSON schema of a kind of config file, for editors, or the fields of a config."""


@command.command("schema", epilog=EXAMPLES)
@click.option(
    "--kind",
    type=click.Choice(["experiment", "base", "suite", "plan", "cell"]),
    default="experiment",
    show_default=True,
    help="Kind of file; base: what experiments extend; cell: the training of one model.",
)
def schema(kind: Kind) -> None:
    """Print the JSON schema of a kind of file.

    It has the description, type, default and older name of every field. An editor with a YAML language server completes
    and checks files by it.
    """
    from bn_vuln.config import schema as schemas

    o.print_json(schemas.json_schema(kind))


@command.command("fields", epilog=EXAMPLES)
@click.argument("name", default="cell", metavar="[NAME]")
@o.json_option
def fields(name: str, as_json: bool) -> None:
    """Print every field of a config.

    Each has its key as --set takes it, what it is, its type and its default. NAME is cell (the training of a model), if
    it is not given; or experiment, suite, attack, table and so on.
    """
    from bn_vuln.config import nearest
    from bn_vuln.config import schema as schemas
    from bn_vuln.errors import UsageError

    configs = schemas.configs()
    if name not in configs:
        raise UsageError(f"no config {name!r} (known: {', '.join(configs)}){nearest(name, configs)}")
    rows = schemas.field_rows(configs[name])
    if as_json:
        o.print_json({"config": name, "fields": [asdict(row) for row in rows]})
        return
    defaults = {"required": "  [required]", "from other fields": "", "its defaults": "", "": ""}
    formatter = click.HelpFormatter(width=120)
    formatter.write_dl(
        [
            (r.key, f"{r.description} {r.type}{defaults.get(r.default, f'  [default: {r.default}]')}".strip())
            for r in rows
        ]
    )
    click.echo(formatter.getvalue().rstrip())
