"""README, guide and glossary say what is there: commands and options exist, tables are up to date, terms are unique."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from bn_vuln.cli.main import bnvuln as program

from bn_vuln.config.fields import field_rows

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
WORDS = 900

sys.path.insert(0, str(ROOT / "tools"))
import make_docs  # noqa: E402


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `bnvuln ...` line of a page's code, without what a shell does with the output."""
    blocks = re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", text, re.M | re.S)
    shown = [block for language, block in blocks if language in ("", "sh", "bash", "console")]
    lines = [line.strip().removeprefix("$ ") for block in shown for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"(?<!`)`(bnvuln [^`\n]+)`", text)
    for line in [*lines, *spans]:
        if line.startswith(("bnvuln ", "BNVULN_LOGICAL_CPUS")):
            words = shlex.split(line[line.index("bnvuln ") :], comments=True)
            yield words[1 : words.index(">")] if ">" in words else words[1:]


def check(words: list[str]) -> None:
    """Fail unless the command and all of its options exist."""
    command, context, rest = program, click.Context(program), words
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        assert found is not None, f"no command {rest[0]}: bnvuln {' '.join(words)}"
        command, rest = found, rest[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        if word.startswith("-") and not re.fullmatch(r"-[\d.].*", word):
            assert word.partition("=")[0] in {*known, "--help", "--version"}, f"{word} of bnvuln {' '.join(words)}"


def test_every_command_exists() -> None:
    found = [words for path in WRITTEN for words in commands(path.read_text(encoding="utf-8"))]
    assert len(found) > 60
    for words in found:
        check(words)


def test_a_command_that_does_not_exist_is_found() -> None:
    for line in ("trian --arch mlp", "train --no-such-option", "data prepair mnist"):
        with pytest.raises(AssertionError):
            check(line.split())
    assert list(commands("```sh\nbnvuln attack runs/ID --eps 8/255   # a comment\n```")) == [
        ["attack", "runs/ID", "--eps", "8/255"]
    ]


def test_the_readme_is_short_and_its_table_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= WORDS
    assert make_docs.with_table(text) == text, "run python tools/make_docs.py"
    assert "bash .ci/run" in text


def test_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_terms_of_the_glossary_are_unique() -> None:
    heads = re.findall(r"^### (.+)$", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.M)
    terms = [term for head in heads for term in head.split(", ")]
    assert len(terms) == len({term.lower() for term in terms}) >= 30


def test_notes_belong_to_experiments() -> None:
    names = {name for kind in make_docs.KINDS for name in make_docs.experiment_names(kind)}
    assert {path.stem for path in (DOCS / "results" / "notes").glob("*.md")} <= names


def test_benchmarks_that_are_named_are_there_and_become_tables() -> None:
    names = make_docs.BENCHMARK.findall((DOCS / "benchmarks.md").read_text(encoding="utf-8"))
    assert {path.name for path in (ROOT / "results").glob("bench_*.json")} == set(names)
    for name in names:
        assert "| ours |" in make_docs.benchmark(name) or name.startswith(
            ("bench_checks", "bench_audit", "bench_imagenet")
        )


def test_tables_that_are_named_are_drawn_with_their_errors() -> None:
    text = (DOCS / "guide" / "scaling.md").read_text(encoding="utf-8")
    page = make_docs.on_page_markdown(text)
    assert len(make_docs.TABLE.findall(text)) == 2
    assert "<!--" not in page
    assert "| times ideal |" in page
    assert "\N{PLUS-MINUS SIGN}" in page
    assert " sem |" not in page
    assert b"makespan / ideal" in make_docs.simulated_sweep()


def test_every_field_of_a_config_is_on_its_page() -> None:
    page = make_docs.config_page()
    assert "| `epochs` | `whole number >= 1` | `20` | Passes through the training set; 5 for convolutional nets" in page
    types = {name for module in make_docs.CONFIGS for model in make_docs.config_classes(module)
             for row in field_rows(model) for name in re.findall(r"\b[A-Z]\w+", row.type)}  # fmt: skip
    assert "Train" in types
    for name in types:
        assert f"### {name}\n" in page


def test_every_command_has_a_page_with_its_options() -> None:
    pages = make_docs.cli_pages()
    assert "`--eps X`" in pages["reference/cli/attack.md"]
    assert "## bnvuln data prepare" in pages["reference/cli/data.md"]


def test_files_that_the_pages_name_exist() -> None:
    """Paths from the root; in the pages on development those inside of the package, too."""
    for path in WRITTEN:
        inside = path.parent.name == "development"
        for name in re.findall(r"`([\w./]+/(?:[\w.]+\.(?:py|yaml|json))?)`", path.read_text(encoding="utf-8")):
            roots = (ROOT, ROOT / "bn_vuln", ROOT / "results") if inside else (ROOT, ROOT / "results")
            made = name.startswith(("runs/", "site/")) or name.endswith("report/") or "ID" in name
            assert made or any((root / name).exists() for root in roots), f"{path.name}: {name}"


def code_names(text: str) -> set[str]:
    """The words of inline code that look like names of Python: with a capital, an underscore, or parentheses."""
    spans = re.findall(r"(?<!`)`([A-Za-z_][\w.]*(?:\(\))?)`(?!`)", text)
    names = {part for span in spans if not span.endswith((".py", ".yaml", ".md", ".json")) for part in span.split(".")}
    return {
        name.removesuffix("()")
        for name in names
        if "_" in name or name.endswith("()") or re.fullmatch(r"[A-Z]\w+", name) or f"`{name}`" not in text
    }


def test_code_names_exist() -> None:
    folders = ("bn_vuln", "cli", "tests", "tools", "configs", "examples")
    sources = [p for folder in folders for kind in ("py", "yaml") for p in (ROOT / folder).rglob(f"*.{kind}")]
    words = {w for path in sources if path != Path(__file__) for w in re.findall(r"\w+", path.read_text("utf-8"))}
    for path in WRITTEN:
        assert code_names(path.read_text(encoding="utf-8")) <= words, path.name
    assert code_names("`no_such_name`, `NoClass.shifted_by`, `NoSuchClass`, `call()`, `pgd`") == {
        "no_such_name", "NoClass", "shifted_by", "NoSuchClass", "call",
    }  # fmt: skip


def test_the_experiment_in_ten_lines_runs_as_it_is_written(bnvuln, tmp_path: Path, monkeypatch) -> None:
    """On less; with the claim that the page adds, and the line for editors."""
    page = (DOCS / "guide" / "experiment-in-ten-lines.md").read_text(encoding="utf-8")
    experiment, claim, editor = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    assert (len(experiment.splitlines()), len(claim.splitlines())) == (10, 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(editor + experiment + claim)
    command = next(words for words in commands(page) if words[0] == "reproduce")
    less = ("seeds=[0]", "train.epochs=2", "evaluation.limit=50")
    code, out, err = bnvuln(*command, "--json", *(word for one in less for word in ("--set", one)))
    assert code == 0, err
    found = json.loads(out)
    assert [(row["arm"], row["perturbation"], row["n"]) for row in found["rows"]] == [
        (arm, column, 1) for arm in ("none", "batch") for column in ("clean", "pgd")
    ]
    assert [(one["perturbation"], one["verdict"]) for one in found["comparisons"]] == [("pgd", "preview")]
    (place,) = re.findall(r"\$schema=(\S+)", editor)
    assert ["config", "schema"] in list(commands(page))
    assert f"bnvuln config schema > {place}\n" in page


def test_the_map_names_functions_of_the_file_beside_them() -> None:
    page = (DOCS / "development" / "index.md").read_text(encoding="utf-8")
    found = re.findall(r"`([\w./]+\.py)`: (?:search )?((?:`[\w.=]+`(?:, )?)+)", page)
    assert len(found) > 15
    for file, names in found:
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.=]+)`", names):
            text = name if "=" in name else f"(?:def|class) {name.rpartition('.')[2]}"
            assert re.search(rf"\b{text}\b", source), f"{file}: {name}"


def test_the_page_on_imagenet_runs_as_it_is_written(bnvuln, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On made-up photos, with random weights, and on less; what needs more than seconds is only parsed."""
    from PIL import Image

    from bn_vuln.data import toy_photos

    page = (DOCS / "guide" / "imagenet.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for number, photo in enumerate(toy_photos.read("test")[0][:4]):
        folder = tmp_path / "photos" / ("n01440764", "n01443537")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / f"{number}.jpg")
    lines = list(commands(page))
    attack = next(words for words in lines if words[:2] == ["attack", "pretrained:resnet50"])
    less = ["--weights", "random", "--steps", "1", "--checks", "none"]
    smaller = {"pretrained:resnet50": "pretrained:resnet18", "20": "2"}
    code, out, err = bnvuln(*[smaller.get(word, word) for word in attack], *less)
    assert code == 0, err
    assert "logits of 1000 classes" in err
    assert "brought to 224 x 224: imagenet" in err
    assert "clean (all, 2)" in out
    code, out, _ = bnvuln("list")
    assert "resnet18" in out
    (python,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    found: dict[str, object] = {}
    exec(python.replace('"resnet50")', '"resnet18", weights="random")'), found)
    assert getattr(found["logits"], "shape", None) == (1, 1000)
    experiments = {words[1] for words in lines if words[0] == "reproduce"} | {"bagnets", "appendix_e2"}
    assert all(f"`{name}`" in page and bnvuln("reproduce", name, "--dry-run")[0] == 0 for name in experiments)
