"""`bnvuln data`: list, inspect and prepare data sets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click

from bn_vuln.typing import Plain

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
OTHER_DATA = (
    "Any other image classification set of TFDS works by its name, and user data as FILE.npz (x_test and y_test,\n"
    "x_train and y_train, or x and y) or folder:PATH (a folder for each class)."
)
as_json = o.json_option


@click.group("data", epilog=EXAMPLES)
def command() -> None:
    """List, inspect and prepare data sets.

    A name is mnist (bundled), a data set of TFDS, the path of an .npz file, or folder:PATH.
    """


@command.command("list", cls=o.GroupedCommand, epilog=LIST_EXAMPLES)
@o.data_options
@as_json
def list_(as_json: bool) -> None:
    """List the data sets that are bundled, well-known, or prepared."""
    from bn_vuln import data
    from bn_vuln.data.tfds import paths

    rows = data.list_datasets()
    if as_json:
        o.print_json({"data_dir": str(paths.data_dir()), "datasets": rows})
        return
    header = ("name", "shape", "classes", "train", "test", "state")
    click.echo(_columns([header, *map(_row, rows)], right=(2, 3, 4)))
    click.echo(f"\nprepared: in {paths.data_dir()}\n{OTHER_DATA}")


@command.command("info", cls=o.GroupedCommand, epilog=INFO_EXAMPLES)
@click.argument("name")
@click.option("--skip-bad", is_flag=True, help="Leave out image files that cannot be read, and list them.")
@o.data_options
@as_json
def info(name: str, skip_bad: bool, as_json: bool) -> None:
    """Describe a data set: its contents, its folder, and the files it is made of."""
    from bn_vuln import data

    if skip_bad:
        name = data.with_options(name, skip_bad=True)
    dataset = data.describe_dataset(name)
    o.print_json(dataset) if as_json else click.echo(_info_text(dataset))


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
            dataset = prepared[-1]
            sizes = ", ".join(f"{n:,} {split}" for split, n in dataset["sizes"].items())
            folder = f", in {dataset['folder']}" if dataset["folder"] else ""
            click.echo(f"{dataset['name']}: {dataset['state']}, {sizes}{folder}")
    if as_json:
        o.print_json({"prepared": prepared})


# ---------------------------------------------------------------- text


def _row(dataset: Plain) -> tuple[str, ...]:
    from bn_vuln.data.describe import format_shape

    sizes = (dataset["sizes"].get(split) for split in ("train", "test"))
    counts = ("-" if size is None else f"{size:,}" for size in sizes)
    return (dataset["name"], format_shape(dataset["shape"]), str(dataset["classes"]), *counts, dataset["state"])


def _columns(rows: list[tuple[str, ...]], right: Collection[int]) -> str:
    """A table of text; the columns `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = [">" if i in right else "<" for i in range(len(widths))]
    form = "  ".join(f"{{:{sign}{width}}}" for sign, width in zip(signs, widths, strict=True))
    return "\n".join(form.format(*row).rstrip() for row in rows)


def _info_text(dataset: Plain) -> str:
    from bn_vuln.data.describe import format_list, format_shape

    computed = "computed when it is first read"
    rows = [
        ("images", format_shape(dataset["shape"])),
        ("classes", f"{len(dataset['classes'])}: {format_list(dataset['classes'], 10)}"),
        *_sizes(dataset),
        ("mean", _numbers(dataset["mean"]) or computed),
        ("std", _numbers(dataset["std"]) or computed),
        ("state", dataset["state"]),
        *([("folder", dataset["folder"])] if dataset["folder"] not in ("", dataset["label"]) else []),
        *(("note", note) for note in dataset["notes"]),
        *(("doubtful", flag) for flag in dataset["flags"]),
    ]
    lines = [dataset["label"], *(f"  {key:8} {value}" for key, value in rows)]
    if dataset.get("by_hand"):
        lines += ["", f"Has to be downloaded by hand into {dataset['put_into']}: {dataset['by_hand']}"]
    if dataset["files"]:
        files = [("file", "MiB", "sha256", "host", "found")]
        for file in dataset["files"]:
            size = "-" if file["size"] is None else f"{file['size'] / 2**20:,.1f}"
            files.append((file["name"], size, file["sha256"] or "-", file["host"] or "-", file["found"] or "no"))
        lines += ["", "Files:", _columns([*files], right=(1,))]
        if dataset["state"] == "not prepared":
            lines += [f"Without network put these into {dataset['put_into']}, or into any folder, with --manual-dir."]
    return "\n".join(lines)


def _sizes(dataset: Plain) -> list[tuple[str, str]]:
    """Rows of the splits; data without any are evaluated whole, and split where a model is trained on them."""
    sizes = dataset["sizes"]
    if list(dataset["splits"]) != ["whole"]:
        return [(split, f"{n:,}") for split, n in sizes.items()]
    parts = "too few to train on" if not sizes["test"] else f"to train on, {sizes['test']:,} of them are the test split"
    return [("all", f"{sum(sizes.values()):,} ({parts})")]


def _numbers(values: Sequence[float] | None) -> str:
    return ", ".join(f"{value:.4f}" for value in values or ())
