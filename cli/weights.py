"""`bnvuln weights`: list, fetch and convert the published weights of nets for ImageNet."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from . import options as o

EXAMPLES = """
  bnvuln weights list
  bnvuln weights fetch vgg11_bn             # needs the extra torch, once
  bnvuln weights fetch vgg11_bn --source timm --sha256 HEX
  bnvuln weights convert alexnet.pth alexnet.safetensors alexnet
"""


@o.command("list", EXAMPLES)
@o.json_option
def _list(as_json: bool) -> None:
    """List the nets, the sources of their weights, and what is on this machine."""
    from bn_vuln.models import weight_files
    from bn_vuln.reporting.tables import MISSING, TextTable, text_table

    nets, folder = weight_files.listed(), weight_files.folder()
    sizes = [MISSING if net["bytes"] is None else f"{net['bytes'] / 2**20:,.1f}" for net in nets]
    rows = [[net["name"], ", ".join(net["sources"]), size] for net, size in zip(nets, sizes, strict=True)]
    table = text_table(TextTable("", ["net", "sources", "MiB here"], rows))
    o.output(as_json, {"folder": str(folder), "nets": nets}, f"{table}\n\nhere: in {folder}")


@o.command("fetch", EXAMPLES)
@cloup.argument("name")
@cloup.option(
    "--source", type=click.Choice(["torchvision", "timm", "bagnets"]), help="Default: the first that has the net."
)
@cloup.option(
    "--sha256", metavar="HEX", help="Of the file, or its first 8 digits or more; those of timm's files are not known."
)
@cloup.option("--force", is_flag=True, help="Fetch them even if they are on this machine.")
@o.json_option
def _fetch(name: str, source: str | None, sha256: str | None, force: bool, as_json: bool) -> None:
    """Fetch the weights of a net where they are not on this machine, and keep them as .safetensors.

    The folder is $BNVULN_WEIGHTS, or ~/.cache/bnvuln/weights. Evaluations of `pretrained:NAME` do the same.
    """
    from bn_vuln.models import pretrained, weight_files

    pretrained.check(name, source)
    path = weight_files.fetch(name, source, sha256, force=force)
    o.output(as_json, {"name": name, "file": str(path), "bytes": path.stat().st_size}, f"{name}: {path}")


@o.command("convert", EXAMPLES)
@cloup.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@cloup.argument("out", type=o.OUTPUT_FILE, metavar="OUT.safetensors")
@cloup.argument("name")
@o.json_option
def _convert(file: Path, out: Path, name: str, as_json: bool) -> None:
    """Write a file of weights (.pth needs PyTorch) as .safetensors, if it fits the net NAME."""
    from bn_vuln.models import pretrained

    pretrained.convert(file, out, name)
    o.output(as_json, {"name": name, "file": str(out), "bytes": out.stat().st_size}, f"{name}: {out}")


@cloup.group(
    "weights",
    sections=[cloup.Section("Commands", [_list, _fetch, _convert])],
    epilog=f"Examples:\n\n\b{EXAMPLES.rstrip()}",
)
def weights() -> None:
    """List, fetch and convert the published weights of nets for ImageNet."""
