"""Reports of made-up records: Markdown, CSV, JSON, figures and one-file HTML; LaTeX is in test_report_latex.py."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers_records import DEVICE, HARM, SMALL, by_arm, fill, small
from helpers_runs import MessageLog

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import Cell, Experiment
from bn_vuln.errors import UsageError
from bn_vuln.experiments.runner import experiment_path
from bn_vuln.records import Flag, open_store, read_records, run_folders
from bn_vuln.reporting import exports, figures, legend, pages, summary, tables
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.reporting.figures import differences
from bn_vuln.reporting.tables import TextTable, format_estimate, markdown_table, records_table

MINUS = "\N{MINUS SIGN}"
FLAG = Flag(check=18, name="steps cannot reach the border", value=0.05, message="take more steps")
NASTY = "<script>alert('x')</script> & \"quotes\" <b>"
ARM_FIGURE = {
    "perturbations": ["bim"],
    "arm": "none",
    "value": 0.66,
    "approximate": True,
    "source": "text",
    "where": {"data.width": 28},
}


def flag_bim(cell: Cell, name: str) -> list[Flag]:
    return [FLAG] if name == "bim" and cell.normalization.name == "batch" else []


def results(root: Path, experiment: Experiment | None = None, values: Any = HARM, **options: Any) -> Results:
    experiment = experiment or small()
    return aggregate(experiment, fill(root, experiment, by_arm(values), **options))


@pytest.fixture(scope="module")
def harm(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results(tmp_path_factory.mktemp("harm"), small(claims=[*SMALL["claims"], ARM_FIGURE]), flags=flag_bim)


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares a test that looks at text the time to draw."""
    monkeypatch.setattr(figures, "draw", lambda results, form="svg": [("", "A caption.", b"<svg/>")])


# ---------------------------------------------------------------- rows of text


def test_percent_is_made_where_it_is_shown() -> None:
    for value, signed, text in [
        (Estimate(0.9771, 0.0005, 5), False, "97.71 ± 0.05"),
        (Estimate(0.9771, None, 1), False, "97.71"),
        (Estimate(-0.4375, 0.005, 3), True, f"{MINUS}43.75 ± 0.50"),
        (Estimate(0.0008, None, 1), True, "+0.08"),
        (Estimate(1.0, 0.0, 3), False, "100.00 ± 0.00"),
        (None, False, "-"),
    ]:
        assert format_estimate(value, signed=signed) == text


def test_the_table_of_accuracies(harm: Results) -> None:
    table = tables.accuracy_table(harm)
    assert table.header == ["width", "normalization", "n", "clean, %", "BIM, %"]
    assert table.rows == [
        ["28", "none", "4", "97.00 ± 0.08", "66.00 ± 0.41"],
        ["28", "batch", "4", "97.10 ± 0.08", "25.95 ± 0.21 [1]"],
        ["28", f"batch {MINUS} none", "4", "+0.10 ± 0.00", f"{MINUS}40.05 ± 0.21"],
    ]
    assert table.differences == {2}


def test_the_table_beside_the_paper(harm: Results) -> None:
    table = tables.comparison_table(harm)
    assert table is not None
    assert table.header[:3] == ["width", "quantity", "under"]
    assert table.rows == [
        ["28", f"batch {MINUS} none", "BIM", f"{MINUS}40.05 ± 0.21 (4)", f"{MINUS}40.00 ± 1.00", f"{MINUS}0.05",
         "holds", "[1]"],
        ["28", "accuracy of none", "BIM", "66.00 ± 0.41 (4)", "about 66.00", "+0.00", "context", "none"],
    ]  # fmt: skip
    assert table.notes == ("[1] check 18: in 4 of 4 seeds, at most: take more steps",)


def test_without_figures_of_the_paper_there_is_one_table(tmp_path: Path) -> None:
    found = results(tmp_path, small(claims=[]))
    assert tables.comparison_table(found) is None
    assert len(tables.result_tables(found)) == 1


def test_failed_and_missing_trainings_stand_in_their_cell(tmp_path: Path) -> None:
    found = results(
        tmp_path,
        failed=lambda cell: cell.seed == 0 and cell.normalization.name == "batch",
        missing=lambda cell: cell.seed == 1 and cell.normalization.name == "batch",
    )
    batch = tables.accuracy_table(found).rows[1]
    assert batch[2] == "2"
    assert batch[4].endswith("(1 failed to train, 1 not run)")


def test_markdown_tables_are_aligned() -> None:
    table = TextTable("t", ["a", "long head"], [["long cell", "b"], ["", "c"]], notes=("note",))
    lines = markdown_table(table).splitlines()
    assert lines[:4] == [
        "| a         | long head |",
        "|-----------|-----------|",
        "| long cell | b         |",
        "|           | c         |",
    ]
    assert lines[-1] == "note"


def test_the_native_width_is_named(tmp_path: Path) -> None:
    found = results(tmp_path, small(grid={"data.width": [None], "normalization": ["none", "batch"]}, claims=[]))
    assert tables.accuracy_table(found).rows[0][0] == "native"


def test_records_of_one_classifier(tmp_path: Path) -> None:
    fill(tmp_path, small(seeds=[0]), by_arm(HARM), flags=flag_bim)
    flagged = next(folder for folder in run_folders(tmp_path) if any(r.flags for r in read_records(folder)))
    found = {record.kind: record for record in read_records(flagged)}
    text = markdown_table(records_table(found))
    rows = {row[0]: row[1:] for row in markdown_rows(text)[1:]}
    assert rows["clean"] == ["clean (test)", "1000", "97.10", "none"]
    words = "bim inf eps 0.1 pixel, 20 steps of 0.0125, box [0, 1], keep first_success (test)"
    assert rows["attack"] == [words, "1000", "26.00", "[1]"]
    assert text.endswith("[1] check 18: take more steps")


# ---------------------------------------------------------------- Markdown


def test_markdown_holds_claim_numbers_and_verdict(harm: Results) -> None:
    text = pages.markdown(harm)
    assert text.startswith("# A small experiment\n")
    assert "Claim: Batch norm harms." in text
    assert "\n1 claim: holds\n" in text
    rows = markdown_rows(text)
    assert ["28", "batch", "4", "97.10 ± 0.08", "25.95 ± 0.21 [1]"] in rows
    assert any("holds" in row and "[1]" in row for row in rows)
    assert "[1] check 18: in 4 of 4 seeds, at most: take more steps" in text
    assert DEVICE in text
    assert "tensorflow 2.99" in text


def test_one_seed_has_no_plus_minus(tmp_path: Path) -> None:
    text = pages.markdown(results(tmp_path, small(seeds=[1])))
    rows = markdown_rows(text)
    assert ["28", "batch", "1", "97.30", "25.50"] in rows
    assert [cell for row in rows[1:4] for cell in row if "±" in cell] == []
    assert "one seed" in text


def test_the_report_says_how_it_was_made(tmp_path: Path) -> None:
    experiment = small(scale="quick", evaluation={"limit": 500, "split": "validation"})
    found = results(tmp_path, experiment, failed=lambda cell: cell.seed == 0, missing=lambda cell: cell.seed == 1)
    rows = dict(summary.summary_rows(found))
    assert rows["Command"] == "bnvuln reproduce small.yaml --scale quick"
    assert rows["Scale"] == "quick"
    assert rows["Examples"] == "1,000 (validation)"
    assert rows["Epochs"] == "1"
    assert rows["State"] == "8 trainings, 2 failed to train, 2 not run"
    assert rows["Time"].startswith("1 min 08 s")


def test_the_report_says_what_it_costs(tmp_path: Path) -> None:
    found = aggregate(small(cost={"quick": "4 min", "full": "12 min"}), tmp_path)
    assert dict(summary.summary_rows(found))["Cost"] == "quick 4 min, full 12 min on two cores (--jobs 2)"
    assert "Cost" not in dict(summary.summary_rows(aggregate(small(), tmp_path)))


def claims(*values: float) -> list[dict[str, Any]]:
    """Differences under BIM that a paper might give."""
    return [{"perturbations": ["bim"], "value": value, "source": "text"} for value in values]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"claims": [*claims(0.1, -0.9), *claims(-0.4) * 2]}, "4 claims: 2 hold, 1 holds in sign, 1 fails"),
        ({"scale": "quick"}, "1 claim: preview"),
        ({"scale": "quick", "claims": claims(0.1, -0.9)}, "2 claims: 2 previews"),
        ({"claims": [ARM_FIGURE]}, "no claim to judge"),
    ],
)
def test_the_verdicts_are_counted(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    found = results(tmp_path, small(**changes))
    assert summary.verdicts(found) == text
    assert dict(summary.summary_rows(found))["Verdict"] == text


@pytest.mark.parametrize("scale", ["full"])
def test_what_was_not_run_is_not_judged(tmp_path: Path, scale: str) -> None:
    assert summary.verdicts(aggregate(small(scale=scale), tmp_path)) == "1 claim: not run"


def test_the_command_of_the_full_scale_is_short(harm: Results) -> None:
    rows = dict(summary.summary_rows(harm))
    assert rows["Command"] == "bnvuln reproduce small.yaml"
    assert rows["State"] == "8 trainings"


def test_the_command_of_an_experiment_that_ships_has_its_name(tmp_path: Path) -> None:
    rows = dict(summary.summary_rows(results(tmp_path, small(name="table6"))))
    assert rows["Command"] == "bnvuln reproduce table6"


# ---------------------------------------------------------------- legends


OWN: dict[str, Any] = {
    "seeds": [0, 1],
    "source": "mine",
    "claims": [
        {"perturbations": ["bim"], "sign": -1, "source": "mine"},
        {"perturbations": ["clean"], "arm": "batch", "value": 0.95, "tolerance": 0.01, "source": "mine"},
        {"perturbations": ["clean"], "arm": "none", "value": 0.95, "source": "mine"},
    ],
}


@pytest.mark.usefixtures("no_drawing")
def test_an_experiment_of_ones_own_speaks_of_its_own_claim(tmp_path: Path) -> None:
    found = results(tmp_path, small(**OWN))
    page = re.sub(r"<style>.*?</style>", "", pages.html([found]), flags=re.S)
    texts = [page, *(pages.render(found, form) for form in ("md", "csv", "tex")), json.dumps(exports.to_json(found))]
    assert [text for text in texts if re.search(r"\bpapers?\b|\bours\b|reproduced", text)] == []
    (table,) = [table for table in tables.result_tables(found) if "verdict" in table.header]
    assert [head for head in table.header if "claimed" in head] == ["claimed", f"measured {MINUS} claimed"]


def test_an_experiment_of_the_paper_speaks_of_the_paper(tmp_path: Path) -> None:
    table = tables.comparison_table(results(tmp_path, small(name="table6")))
    assert table is not None
    assert table.header[-4:] == ["paper", f"measured {MINUS} paper", "verdict", "flags"]


@pytest.mark.usefixtures("no_drawing")
def test_every_column_and_verdict_is_explained(tmp_path: Path) -> None:
    columns = {"clean": "clean", "bim": "BIM", "bim.loss": "loss", "tilt": "angle", "clean@batch": "clean, batch"}
    table = {"rows": ["data.width"], "columns": columns}
    batch = {"bn_statistics": "batch", "perturbations": ["clean"]}
    own = small(**OWN, table=table, measurements={"tilt": "tilt"}, evaluations={"batch": batch})
    found = results(tmp_path, own)
    assert legend.columns(found) == [
        ("width", "settings of the training (data.width); each combination is a block of rows"),
        ("normalization", f"the variants compared, by normalization.name; batch {MINUS} none is their difference, seed "
         "by seed, then averaged"),
        ("n", "training seeds behind a mean; ± is its standard error over them (SEM), which takes two"),
        ("clean", "accuracy on clean images"),
        ("BIM", "accuracy under bim inf eps 0.1 pixel, 20 steps of 0.0125, box [0, 1], keep first_success"),
        ("loss", "mean cross-entropy under bim inf eps 0.1 pixel, 20 steps of 0.0125, box [0, 1], keep first_success"),
        ("angle", "angle of the boundary to the nearest-centroid classifier"),
        ("clean, batch", "accuracy on clean images, at the evaluation batch"),
    ]  # fmt: skip
    lines = dict(legend.verdicts(found))
    assert set(lines) == {"quantity, under", "measured", "claimed", "flags", "undecided", "context"}
    text = pages.html([found])
    assert [line for line in (*legend.columns(found), *lines.items()) if f"<dt>{line[0]}:</dt> <dd>" not in text] == []


def test_columns_that_differ_in_eps_share_a_line(tmp_path: Path) -> None:
    pgd = {"kind": "attack", "attack": "pgd", "eps": "8/255", "steps": 3, "eps_grid": ["2/255", "4/255"]}
    columns = {"pgd 2/255": "PGD 2/255", "pgd 4/255": "4/255", "pgd": "8/255"}
    own = small(perturbations={"pgd": pgd}, table={"rows": ["data.width"], "columns": columns}, claims=[])
    *_, (heads, meaning) = legend.columns(aggregate(own, tmp_path))
    assert heads == "PGD 2/255; 4/255; 8/255"
    assert meaning.startswith("accuracy under pgd inf eps ")


def test_arms_of_unequal_clean_accuracy_are_flagged_without_a_claim(tmp_path: Path) -> None:
    values = {**HARM, ("batch", "clean"): (0.90, 0.91, 0.92, 0.93)}
    found = results(tmp_path, small(claims=[]), values=values)
    table = tables.accuracy_table(found)
    assert table.rows[-1][-2:] == [f"{MINUS}5.50 ± 0.68", f"{MINUS}40.05 ± 0.21 [1]"]
    assert table.notes == ("[1] check 15: the arms' clean accuracies differ by -5.5 points",)
    (clean, bim) = exports.to_json(found)["differences"]
    assert (clean["flags"], [flag["check"] for flag in bim["flags"]]) == ([], [15])


def test_own_data_are_named_as_the_config_names_them(tmp_path: Path) -> None:
    own = small(base={"data": {"name": "my.npz", "digest": "0123456789abcdef"}}, claims=[])
    text = pages.markdown(results(tmp_path, own))
    assert "- Trained on: my.npz\n" in text
    assert "0123456789abcdef" not in text


def test_what_an_attack_does_not_have_is_not_called_missing(tmp_path: Path) -> None:
    """The search along an eps grid has no loss, however often it is run."""
    own = small(table={"rows": ["data.width"], "columns": {"bim": "BIM", "bim.loss": "loss"}}, claims=[])
    table = tables.accuracy_table(results(tmp_path, own))
    assert [row[-1] for row in table.rows] == ["-", "-", "-"]


# ---------------------------------------------------------------- CSV and JSON


def test_csv_holds_the_fraction_of_every_seed(harm: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(exports.csv_text(harm))))
    found = {(row["arm"], row["perturbation"], int(row["seed"])): float(row["value"]) for row in rows}
    assert found == {(arm, name, s): value for (arm, name), seeds in HARM.items() for s, value in enumerate(seeds)}
    assert len(rows) == 16
    assert {row["data.width"] for row in rows} == {"28"}
    assert {row["examples"] for row in rows} == {"1000"}
    assert {(row["arm"], row["perturbation"]) for row in rows if row["flags"] == "18"} == {("batch", "bim")}


@pytest.mark.parametrize("n", [7])
def test_csv_loses_no_digit(tmp_path: Path, n: int) -> None:
    experiment = small()
    fill(tmp_path, experiment, lambda cell, name: 1 / n, n=n)
    rows = csv.DictReader(io.StringIO(exports.csv_text(aggregate(experiment, tmp_path))))
    assert {float(row["value"]) for row in rows} == {1 / n}


def test_a_frame_has_types(tmp_path: Path) -> None:
    found = exports.frame(results(tmp_path, missing=lambda cell: (cell.normalization.name, cell.seed) == ("batch", 2)))
    assert dict(found.dtypes.astype(str)[["data.width", "seed", "value", "examples"]]) == {
        "data.width": "object", "seed": "int64", "value": "float64", "examples": "Int64",
    }  # fmt: skip
    means = found.groupby(["perturbation", "arm"])["value"].mean()
    assert means["bim", "none"] == pytest.approx(0.66)
    assert means["bim", "batch"] == pytest.approx((0.26 + 0.255 + 0.258) / 3)
    assert list(found.loc[found["value"].isna(), "state"]) == ["missing", "missing"]


def test_csv_of_nothing_is_its_head(tmp_path: Path) -> None:
    text = exports.csv_text(aggregate(small(), tmp_path))
    head, *rows = text.splitlines()
    assert head == "data.width,arm,perturbation,seed,value,unit,examples,state,flags"
    assert rows[0] == "28,none,clean,0,,fraction,,missing,"
    assert len(rows) == 16


def test_csv_says_which_seeds_failed_to_train(tmp_path: Path) -> None:
    found = results(tmp_path, failed=lambda cell: (cell.normalization.name, cell.seed) == ("batch", 2))
    rows = list(csv.DictReader(io.StringIO(exports.csv_text(found))))
    assert {(r["arm"], r["seed"], r["value"]) for r in rows if r["state"] == "failed"} == {("batch", "2", "")}
    assert {r["state"] for r in rows} == {"measured", "failed"}
    assert {r["unit"] for r in rows} == {"fraction"}


def test_numbers_in_the_table_of_accuracies_have_their_flags(tmp_path: Path) -> None:
    """Not claims alone: an experiment may have none."""
    flags = {("none", "bim"): (18, 0.1, "a"), ("batch", "bim"): (18, -0.3, "b"), ("batch", "clean"): (4, 1.0, "c")}

    def raised(cell: Cell, name: str) -> list[Flag]:
        found = flags.get((cell.normalization.name, name))
        return [Flag(check=found[0], name="made up", value=found[1], message=found[2])] if found else []

    table = tables.accuracy_table(results(tmp_path, small(seeds=[0], claims=[]), flags=raised))
    assert [row[-2:] for row in table.rows[:2]] == [["97.00", "66.00 [2]"], ["97.10 [1]", "26.00 [2]"]]
    assert table.notes[:2] == (
        "[1] check 4: c",
        "[2] check 18 (2 numbers, largest: width 28, batch, BIM): b",
    )


def test_a_reason_stands_beside_what_differs_alone(tmp_path: Path) -> None:
    """A remark on a difference is untrue beside a claim that holds."""
    claim = {"perturbations": ["bim"], "sem": 0.01, "source": "made up", "remark": "Because."}
    for value, remark in ((-0.4, ""), (0.4, "Because.")):
        found = results(tmp_path / str(value), small(claims=[{**claim, "value": value}]))
        assert [claim.remark for claim in tables.claim_texts(found)] == [remark]


def test_json_holds_fractions(harm: Results) -> None:
    data = json.loads(json.dumps(exports.to_json(harm), allow_nan=False))
    assert (data["experiment"], data["scale"], data["cells"], data["failed"], data["missing"]) == (
        "small", "full", 8, 0, 0,
    )  # fmt: skip
    rows = {(row["arm"], row["perturbation"]): row for row in data["rows"]}
    assert set(rows) == set(HARM)
    assert rows["batch", "bim"]["mean"] == pytest.approx(0.2595)
    assert rows["batch", "bim"]["n"] == 4
    assert [flag["check"] for flag in rows["batch", "bim"]["flags"]] == [18]
    difference, context = data["comparisons"]
    assert difference["mean"] == pytest.approx(-0.4005)
    assert (difference["claimed"], difference["claimed_sem"], difference["verdict"]) == (-0.4, 0.01, "holds")
    assert difference["difference"] == pytest.approx(-0.0005)
    assert (context["arm"], context["verdict"]) == ("none", "context")


def test_json_of_nothing(tmp_path: Path) -> None:
    data = json.loads(json.dumps(exports.to_json(aggregate(small(), tmp_path)), allow_nan=False))
    assert {(row["mean"], row["sem"], row["n"], row["missing"]) for row in data["rows"]} == {(None, None, 0, 4)}
    assert [(c["mean"], c["verdict"]) for c in data["comparisons"]] == [(None, "not run")]


# ---------------------------------------------------------------- HTML


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of its table cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data

    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
        return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


def test_the_page_is_alone(harm: Results) -> None:
    text = pages.html([harm])
    page = Page(text)
    assert re.findall(r"https?:|//\w+\.\w+|@import|url\(", re.sub(r"data:image[^\"]*", "", text)) == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "base"} == set()
    assert [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)] == []


def test_the_picture_in_the_page_loads_nothing(harm: Results) -> None:
    (picture,) = Page(pages.html([harm])).pictures()
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert [e.tag for e in root.iter() if e.tag.rpartition("}")[2] in ("script", "image", "foreignObject")] == []
    links = [value for e in root.iter() for key, value in e.attrib.items() if key.rpartition("}")[2] == "href"]
    assert [link for link in links if not link.startswith("#")] == []
    assert b"url(http" not in picture


@pytest.mark.usefixtures("no_drawing")
def test_the_page_holds_every_cell_of_every_table(tmp_path: Path) -> None:
    found = [
        results(tmp_path / "one", small(claims=[*SMALL["claims"], ARM_FIGURE]), flags=flag_bim),
        results(tmp_path / "two", small(scale="quick", seeds=[0])),
    ]
    expected = [
        cell
        for one in found
        for table in tables.result_tables(one)
        for row in (table.header, *table.rows)
        for cell in row
    ]
    assert Page(pages.html(found)).cells == expected


@pytest.mark.usefixtures("no_drawing")
def test_the_page_holds_notes_facts_and_config(tmp_path: Path) -> None:
    text = pages.html([results(tmp_path, small(notes=["A note."], cost={"quick": "6 min"}), flags=flag_bim)])
    fragments = ["A note.", "check 18: in 4 of 4 seeds, at most: take more steps"]
    fragments += ["bnvuln reproduce small", DEVICE, "quick 6 min on", "seeds:"]
    assert [fragment for fragment in fragments if fragment not in text] == []


@pytest.mark.usefixtures("no_drawing")
def test_the_page_is_made_for_phones(harm: Results) -> None:
    page = Page(pages.html([harm]))
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert {"charset": "utf-8"} in metas
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("field", ["title"])
def test_the_page_escapes_what_people_write(tmp_path: Path, field: str) -> None:
    experiment = small(**{field: NASTY})
    text = pages.html([results(tmp_path, experiment)])
    page = Page(text)
    assert "&lt;script&gt;" in text
    assert {tag for tag, _ in page.tags} & {"script", "b"} == set()
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [experiment.title]


@pytest.mark.usefixtures("no_drawing")
def test_the_page_escapes_the_heads_of_columns(tmp_path: Path) -> None:
    experiment = small(table={**SMALL["table"], "columns": {"bim": NASTY}})
    page = Page(pages.html([results(tmp_path, experiment)]))
    assert f"{NASTY}, %" in page.cells
    assert {tag for tag, _ in page.tags} & {"script", "b"} == set()


def test_a_page_of_nothing(tmp_path: Path) -> None:
    page = Page(pages.html([aggregate(small(), tmp_path)]))
    assert page.pictures() == []
    assert "not run" in page.cells


def attributes_of(page: Page, tag: str, name: str) -> list[str | None]:
    return [attributes[name] for found, attributes in page.tags if found == tag and name in attributes]


@pytest.mark.usefixtures("no_drawing")
def test_the_contents_lead_to_every_section_and_say_its_verdict(tmp_path: Path) -> None:
    first = results(tmp_path / "one")
    other = results(tmp_path / "two", small(name="other", title="Another", scale="quick"))
    text = pages.html([first, other])
    page = Page(text)
    assert attributes_of(page, "section", "id") == ["small-full", "other-quick"]
    assert attributes_of(page, "a", "href") == ["#small-full", "#other-quick"]
    nav = re.sub(r"<[^>]*>", "", text[text.index("<nav") : text.index("</nav>")])
    assert [line for line in nav.splitlines() if line] == [
        "A small experiment 1 claim: holds",
        "Another 1 claim: preview",
    ]
    assert "<strong>2 experiments</strong>, 2 claims: 1 holds, 1 preview" in text


@pytest.mark.usefixtures("no_drawing")
def test_a_page_of_one_experiment_needs_no_contents(harm: Results) -> None:
    page = Page(pages.html([harm]))
    assert [tag for tag, _ in page.tags if tag in ("nav", "h1")] == ["h1"]


class Nesting(HTMLParser):
    """Fails for a tag that is closed by another one, or never."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("count", [2])
def test_the_tags_of_the_page_are_nested(harm: Results, count: int) -> None:
    nesting = Nesting()
    nesting.feed(pages.html([harm] * count))
    nesting.close()
    assert nesting.open == []


@pytest.mark.usefixtures("no_drawing")
def test_the_page_shows_several_figures(harm: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [("", "First.", b"<svg/>"), ("curves", "Second & last.", b"<svg></svg>")]
    monkeypatch.setattr(figures, "draw", lambda results, form="svg": drawn)
    text = pages.html([harm])
    page = Page(text)
    assert page.pictures() == [b"<svg/>", b"<svg></svg>"]
    assert attributes_of(page, "img", "alt") == ["A small experiment", "A small experiment: curves"]
    assert re.findall("<figcaption>(.*)</figcaption>", text) == ["First.", "Second &amp; last."]


def test_the_page_is_dark_on_dark_screens_and_light_on_paper(harm: Results) -> None:
    text = pages.html([aggregate(harm.experiment, Path("nowhere"))])
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert "@media print" in text


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(("count", "title"), [(1, "A small experiment"), (2, "bnvuln: results")])
def test_the_title_of_the_page(harm: Results, count: int, title: str) -> None:
    assert f"<title>{title}</title>" in pages.html([harm] * count)


# ---------------------------------------------------------------- figures


def drawn(found: Results, form: str = "svg") -> bytes | None:
    """The only figure of an experiment; None where there is none."""
    made = figures.draw(found, form)
    assert len(made) <= 1
    return made[0][2] if made else None


def drawn_accuracies(found: Results, form: str = "svg") -> bytes | None:
    made = differences.draw_accuracies(found, form)
    return made[0][2] if made else None


def test_figures_are_svg_and_png(harm: Results) -> None:
    svg, png = drawn_accuracies(harm), drawn_accuracies(harm, "png")
    assert svg is not None
    assert png is not None
    texts = " ".join("".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text"))
    labels = ["none (n = 4)", "batch (n = 4)", "width 28", "clean", "BIM", "accuracy, %", "claimed"]
    assert [label for label in labels if label not in texts] == []
    assert png.startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(("seeds", "is_dotted"), [([0], True), ([0, 1], False)])
def test_one_seed_has_the_interval_of_its_examples_in_the_figure(
    tmp_path: Path, seeds: list[int], is_dotted: bool
) -> None:
    svg = (drawn_accuracies(results(tmp_path, small(seeds=seeds))) or b"").decode()
    assert ("95% over examples" in svg) is is_dotted
    assert ("95% interval" in svg) is not is_dotted
    assert ("stroke-dasharray" in svg) is is_dotted


@pytest.mark.parametrize("form", ["svg"])
def test_nothing_makes_no_figure(tmp_path: Path, form: str) -> None:
    assert drawn_accuracies(aggregate(small(), tmp_path), form) is None


@pytest.mark.parametrize(("rows", "is_drawn"), [(2, True), (differences.MAX_BLOCKS + 1, False)])
def test_figures_have_few_rows(tmp_path: Path, rows: int, is_drawn: bool) -> None:
    grid = {"data.width": [28 + 2 * i for i in range(rows)], "normalization": ["none", "batch"]}
    found = drawn_accuracies(results(tmp_path, small(grid=grid, seeds=[0])))
    assert (found is not None) is is_drawn


@pytest.mark.parametrize(
    "values",
    [{("none", "clean"): (0.9,)}, {("none", "clean"): (0.9, 0.8), ("batch", "clean"): (0.7, None)}],
)
def test_figures_of_half_an_experiment(tmp_path: Path, values: dict[tuple[str, str], Sequence[float | None]]) -> None:
    found = drawn_accuracies(results(tmp_path, values=values))
    assert found is not None
    ElementTree.fromstring(found)


CANDIDATES: dict[str, Any] = {
    "grid": {"train.lr": [0.1, 0.2, 0.3], "normalization": ["none", "batch"]},
    "seeds": [0],
    "table": {"rows": ["train.lr"], "columns": {"clean": "clean", "bim": "BIM"}, "select_by": "clean"},
    "claims": [],
}


def candidates(root: Path, without: tuple[str, ...] = ()) -> Results:
    """Three candidate settings, without records under some perturbations or of some arms."""

    def accuracy(cell: Cell, name: str) -> float | None:
        return None if {name, cell.normalization.name} & set(without) else 0.5 + cell.train.lr / 10

    experiment = small(**CANDIDATES)
    return aggregate(experiment, fill(root, experiment, accuracy))


def test_the_figure_of_candidates_marks_the_chosen_one(tmp_path: Path) -> None:
    found = candidates(tmp_path)
    svg = drawn(found)
    assert svg is not None
    texts = ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")]
    labels = ["chosen", "BIM", *(f"learning rate {rate}" for rate in (0.1, 0.2, 0.3))]
    assert [label for label in labels if label not in texts] == []
    assert drawn(found) == svg
    assert (drawn(found, "png") or b"").startswith(b"\x89PNG\r\n\x1a\n")


def test_the_figure_of_an_experiment_without_a_choice_is_of_accuracies(harm: Results) -> None:
    assert drawn(harm) == drawn_accuracies(harm)


def test_no_candidates_make_no_figure(tmp_path: Path) -> None:
    assert drawn(aggregate(small(**CANDIDATES), tmp_path)) is None


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("without", ["clean", "batch"])
def test_candidates_with_nothing_to_draw_make_no_figure(tmp_path: Path, without: str) -> None:
    assert drawn(candidates(tmp_path, (without,))) is None


def panels(found: Results, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], str]:
    """The axes of the figure of accuracies, and its caption."""
    shown: list[Any] = []

    def render(figure: Any, file_format: str) -> bytes:
        shown.extend(figure.axes)
        return b""

    monkeypatch.setattr(differences, "render", render)
    ((_, caption, _),) = differences.draw_accuracies(found, "svg")
    return shown, caption


def test_the_interval_of_two_seeds_does_not_stretch_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences of -2 and +6 points: 2 +- 51 (12.7 SEM). Shown are the seeds and as much again on both sides."""
    values = {("none", "bim"): (0.60, 0.60), ("batch", "bim"): (0.58, 0.66)}
    (_, right), caption = panels(results(tmp_path, small(seeds=[0, 1], claims=[]), values=values), monkeypatch)
    low, high = right.get_ylim()
    assert -12 < low < -9.9
    assert 13.9 < high < 16
    assert [line.get_marker() for line in right.lines if line.get_marker() in ("v", "^")] == ["v", "^"]
    assert "a triangle ends an interval that is wider than is shown" in caption
    assert "claim" not in caption


def test_intervals_that_fit_are_shown_whole(harm: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, right), caption = panels(harm, monkeypatch)
    assert [line.get_marker() for line in right.lines if line.get_marker() in ("v", "^")] == []
    assert "triangle" not in caption
    assert "what is claimed" in caption


def test_arms_that_are_not_compared_have_no_panel_of_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = small(grid={"normalization": ["batch"]}, table={"columns": {"clean": "clean"}}, claims=[])
    shown, caption = panels(results(tmp_path, alone), monkeypatch)
    assert len(shown) == 1
    assert "ifference" not in caption


# ---------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path, small(), by_arm(HARM))
    return fill(tmp_path, small(name="other", title="Another", scale="quick", seeds=[0]), by_arm(HARM))


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("html", ["index.html"]),
        ("csv", ["other-quick.csv", "small-full.csv"]),
        ("tex", ["other-quick.tex", "small-full.tex"]),
        (
            "md",
            ["other-quick.svg", "other-quick.png", "other-quick.md", "small-full.svg", "small-full.png",
             "small-full.md"],
        ),
    ],
)  # fmt: skip
def test_the_files_of_a_report(folder: Path, form: Any, names: list[str]) -> None:
    written = pages.write(folder, form)
    assert [path.name for path in written] == names
    assert {path.parent for path in written} == {folder / "report"}
    assert [path for path in written if path.stat().st_size == 0] == []
    assert sorted(path.name for path in (folder / "report").iterdir()) == sorted(names)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(("form", "name"), [("html", "small-full.html")])
def test_the_report_of_one_experiment(folder: Path, form: Any, name: str) -> None:
    (path,) = pages.write(folder, form, only=small())
    assert path.name == name
    assert "Another" not in path.read_text()


def test_every_figure_has_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(results: Results, form: str = "svg") -> list[tuple[str, str, bytes]]:
        return [(name, "", f"{name} as {form}".encode()) for name in ("", "curves")]

    monkeypatch.setattr(figures, "draw", drawn)
    *pictures, page = pages.write(folder, "md", only=small())
    names = ["small-full.svg", "small-full.png", "small-full-curves.svg", "small-full-curves.png"]
    assert [path.name for path in pictures] == names
    assert pictures[-1].read_text() == "curves as png"
    assert re.findall(r"!\[.*\]\((.*)\)", page.read_text()) == names[1::2]


def test_markdown_without_data_has_no_figure(tmp_path: Path) -> None:
    fill(tmp_path, small(), by_arm({}))
    (path,) = pages.write(tmp_path, "md")
    assert "![" not in path.read_text()


def test_experiments_in_a_folder_are_those_that_ran(folder: Path) -> None:
    assert open_store(folder).experiments() == [
        small(name="other", title="Another", scale="quick", seeds=[0]), small(),
    ]  # fmt: skip


@pytest.mark.parametrize("use", [pages.write])
def test_a_folder_without_experiments_is_named(tmp_path: Path, use: Any) -> None:
    with pytest.raises(UsageError) as caught:
        use(tmp_path)
    fragments = [str(tmp_path), "no experiment here", "bnvuln reproduce"]
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert not (tmp_path / "report").exists()


def test_a_damaged_experiment_is_named(folder: Path) -> None:
    path = experiment_path(folder, small())
    path.write_text(path.read_text().replace("seeds:", "sedes:"))
    log = MessageLog()
    (page,) = pages.write(folder, progress=log)  # of the other one
    assert f"damaged, counted as missing: {path}: unknown key 'sedes'" in log.lines[0]
    assert str(path) in page.read_text()


@pytest.mark.parametrize("form", ["md", "html"])
def test_rendering_is_deterministic(harm: Results, form: Any) -> None:
    assert pages.render(harm, form) == pages.render(harm, form)


def test_figures_are_deterministic(harm: Results) -> None:
    assert drawn_accuracies(harm) == drawn_accuracies(harm)
