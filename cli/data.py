"""`bnvuln data`: list, inspect and prepare data sets."""

from __future__ import annotations

import cloup

from . import options as o

EXAMPLES = """
  bnvuln data list
  bnvuln data info cifar10                                # or cifar10_1/v6
  bnvuln data info mine.npz                               # or folder:images
  bnvuln data prepare fashion_mnist cifar10
  bnvuln data prepare cifar10 --manual-dir ~/Downloads    # without network
"""


@o.command("list", EXAMPLES)
@o.data_options
@o.json_option
def _list(as_json: bool) -> None:
    """List the data sets that are bundled, well-known, or prepared."""
    from bn_vuln import data
    from bn_vuln.data.tfds import paths
    from bn_vuln.reporting import datasets

    rows, folder = data.list_datasets(), paths.data_dir()
    o.output(as_json, {"data_dir": str(folder), "datasets": rows}, datasets.list_text(rows, folder))


@o.command("info", EXAMPLES)
@cloup.argument("name")
@cloup.option("--skip-bad", is_flag=True, help="Leave out image files that cannot be read, and list them.")
@o.data_options
@o.json_option
def _info(name: str, skip_bad: bool, as_json: bool) -> None:
    """Describe a data set: its contents, its folder, and the files it is made of."""
    from bn_vuln import data
    from bn_vuln.reporting import datasets

    found = data.describe_dataset(data.with_options(name, skip_bad=True) if skip_bad else name)
    o.output(as_json, found, datasets.text(found))


@o.command("prepare", EXAMPLES)
@cloup.argument("names", nargs=-1, required=True, metavar="NAME...")
@o.data_options
@o.json_option
def _prepare(names: tuple[str, ...], as_json: bool) -> None:
    """Make data sets ready to be read, downloading what is missing.

    Training and attacks do the same when they need a data set. Files in --manual-dir are checked by sha256.
    """
    from bn_vuln import data
    from bn_vuln.reporting import datasets

    prepared = []
    for name in names:
        data.prepare(name)
        prepared.append(data.describe_dataset(name))
        if not as_json:
            o.echo(datasets.prepared_text(prepared[-1]))
    if as_json:
        o.print_json({"prepared": prepared})


@o.group("data", EXAMPLES, _list, _info, _prepare)
def data() -> None:
    """List, inspect and prepare data sets.

    A name is mnist (bundled), a data set of TFDS, the path of an .npz file, or folder:PATH.
    """
