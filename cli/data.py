"""`bnvuln data`: list, inspect and prepare data sets."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from . import options as o

EXAMPLES = """
Examples:

\b
  bnvuln data list
  bnvuln data info cifar10
  bnvuln data prepare fashion_mnist cifar10
  bnvuln data prepare cifar10 --manual-dir ~/Downloads    # without network
"""
LIST_EXAMPLES = """
Examples:

\b
  bnvuln data list
  bnvuln data list --data-dir /data/tensorflow_datasets --json
"""
INFO_EXAMPLES = """
Examples:

\b
  bnvuln data info fashion_mnist
  bnvuln data info cifar10_1/v6 --json
  bnvuln data info mine.npz
  bnvuln data info folder:images
"""
PREPARE_EXAMPLES = """
Examples:

\b
  bnvuln data prepare fashion_mnist cifar10
  bnvuln data prepare cifar10 --manual-dir ~/Downloads    # without network
"""
OTHERS = (
    "Any other image classification set of TFDS works by its name, and one's own data as FILE.npz (x_train, y_train,\n"
    "x_test, y_test, or x and y) or folder:PATH (a folder for each class)."
)
as_json = o.option("Output")("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


@click.group("data", epilog=EXAMPLES)
def command() -> None:
    """List, inspect and prepare data sets.

    A name is mnist (bundled), a data set of TFDS, the path of an .npz file, or folder:PATH.
    """


@command.command("list", cls=o.GroupedCommand, epilog=LIST_EXAMPLES)
@o.data_options
@as_json
def list_(as_json: bool) -> None:
    """Data sets that are bundled, known here or prepared."""
    from bn_vuln import data
    from bn_vuln.data.tfds import paths

    rows = data.list_datasets()
    if as_json:
        o.print_json({"data_dir": str(paths.data_dir()), "datasets": rows})
        return
    heads = ("name", "shape", "classes", "train", "test", "state")
    click.echo(_columns([heads, *(_cells(row) for row in rows)], right=(2, 3, 4)))
    click.echo(f"\nprepared: in {paths.data_dir()}\n{OTHERS}")


@command.command("info", cls=o.GroupedCommand, epilog=INFO_EXAMPLES)
@click.argument("name")
@o.data_options
@as_json
def info(name: str, as_json: bool) -> None:
    """What a data set holds, where it is, and the files it is made of."""
    from bn_vuln import data

    found = data.describe_dataset(name)
    o.print_json(found) if as_json else click.echo(_info_text(found))


@command.command("prepare", cls=o.GroupedCommand, epilog=PREPARE_EXAMPLES)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@o.data_options
@as_json
def prepare(names: tuple[str, ...], as_json: bool) -> None:
    """Make data sets ready to be read, downloading what is missing.

    Training and attacks do the same when they need a data set. Files in --manual-dir are checked by sha256.
    """
    from bn_vuln import data

    prepared = []
    for name in names:
        data.prepare(name)
        prepared.append(data.describe_dataset(name))
        if not as_json:
            click.echo(_prepared_line(prepared[-1]))
    if as_json:
        o.print_json({"prepared": prepared})


# ---------------------------------------------------------------- text


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from bn_vuln.data.describe import shape

    counts = (_count(row["sizes"].get(split)) for split in ("train", "test"))
    return (row["name"], shape(row["shape"]), str(row["classes"]), *counts, row["state"])


def _count(n: int | None) -> str:
    return "-" if n is None else f"{n:,}"


def _columns(rows: list[tuple[str, ...]], right: Collection[int]) -> str:
    """Rows of text under each other, the columns `right` (of numbers) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = [">" if i in right else "<" for i in range(len(widths))]
    form = "  ".join(f"{{:{sign}{width}}}" for sign, width in zip(signs, widths, strict=True))
    return "\n".join(form.format(*row).rstrip() for row in rows)


def _info_text(found: dict[str, Any]) -> str:
    from bn_vuln.data.describe import listed, shape

    computed = "computed when it is first read"
    rows = [
        ("images", shape(found["shape"])),
        ("classes", f"{len(found['classes'])}: {listed(found['classes'], 10)}"),
        *((split, f"{n:,}") for split, n in found["sizes"].items()),
        ("mean", _numbers(found["mean"]) or computed),
        ("std", _numbers(found["std"]) or computed),
        ("state", found["state"]),
        *([("folder", found["folder"])] if found["folder"] else []),
    ]
    lines = [found["name"], *(f"  {key:8} {value}" for key, value in rows)]
    if found.get("by_hand"):
        lines += ["", f"Has to be downloaded by hand into {found['put_into']}: {found['by_hand']}"]
    return "\n".join([*lines, *_files_text(found)])


def _files_text(found: dict[str, Any]) -> list[str]:
    if not found["files"]:
        return []
    heads = ("file", "MiB", "sha256", "host", "found")
    rows = [
        (f["name"], _mib(f["size"]), f["sha256"] or "-", f["host"] or "-", f["found"] or "no") for f in found["files"]
    ]
    lines = ["", "Files:", _columns([heads, *rows], right=(1,))]
    if found["state"] == "not prepared":
        lines += [f"Without network put these into {found['put_into']}, or into any folder, with --manual-dir."]
    return lines


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.1f}"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.4f}" for value in values or ())


def _prepared_line(found: dict[str, Any]) -> str:
    sizes = ", ".join(f"{n:,} {split}" for split, n in found["sizes"].items())
    place = f", in {found['folder']}" if found["folder"] else ""
    return f"{found['name']}: {found['state']}, {sizes}{place}"
