"""Data sets as text, of what `data.list_datasets` and `data.describe_dataset` say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bn_vuln.data.describe import format_list, format_shape
from bn_vuln.reporting.tables import MISSING, TextTable, text_table
from bn_vuln.typing import Plain

WIDTH = 200  # of the table of files: hashes are not broken
OTHER_DATA = (
    "Any other image classification set of TFDS works by its name, and user data as FILE.npz (x_test and y_test,\n"
    "x_train and y_train, or x and y) or folder:PATH (a folder for each class)."
)


def list_text(rows: Sequence[Plain], folder: Path) -> str:
    """Return a table of data sets, those of TFDS in the data folder `folder`."""
    cells = [
        [row["name"], format_shape(row["shape"]), str(row["classes"]), *_counts(row), row["state"]] for row in rows
    ]
    table = TextTable("", ["name", "shape", "classes", "train", "test", "state"], cells)
    return f"{text_table(table)}\n\nprepared: in {folder}\n{OTHER_DATA}"


def _counts(row: Plain) -> list[str]:
    return [f"{row['sizes'][split]:,}" if split in row["sizes"] else MISSING for split in ("train", "test")]


def prepared_text(dataset: Plain) -> str:
    """Return state, sizes and folder of a data set in a line."""
    sizes = ", ".join(f"{n:,} {split}" for split, n in dataset["sizes"].items())
    folder = f", in {dataset['folder']}" if dataset["folder"] else ""
    return f"{dataset['name']}: {dataset['state']}, {sizes}{folder}"


def text(dataset: Plain) -> str:
    """Return all that is known of a data set, a line each, and the files that it is made of."""
    computed = "computed when it is first read"
    rows = [
        ("images", format_shape(dataset["shape"])),
        ("classes", f"{len(dataset['classes'])}: {format_list(dataset['classes'], 10)}"),
        *_sizes(dataset),
        *((key, ", ".join(f"{value:.4f}" for value in dataset[key] or ()) or computed) for key in ("mean", "std")),
        ("state", dataset["state"]),
        *([("folder", dataset["folder"])] if dataset["folder"] not in ("", dataset["label"]) else []),
        *(("note", note) for note in dataset["notes"]),
        *(("doubtful", flag) for flag in dataset["flags"]),
    ]
    lines = [dataset["label"], *(f"  {key:8} {value}" for key, value in rows)]
    if dataset.get("by_hand"):
        lines += ["", f"Has to be downloaded by hand into {dataset['put_into']}: {dataset['by_hand']}"]
    if dataset["files"]:
        lines += ["", "Files:", text_table(_files(dataset), WIDTH)]
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


def _files(dataset: Plain) -> TextTable:
    rows = [
        [file["name"], MISSING if file["size"] is None else f"{file['size'] / 2**20:,.1f}",
         file["sha256"] or MISSING, file["host"] or MISSING, file["found"] or "no"]
        for file in dataset["files"]
    ]  # fmt: skip
    return TextTable("", ["file", "MiB", "sha256", "host", "found"], rows)
