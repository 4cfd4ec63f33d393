"""The page of an audit, its lines, rows and figures, of made-up findings: with everything, and with nothing."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import helpers_findings as made
import numpy as np
import pytest
from PIL import Image

from bn_vuln.auditing.findings import Advice, Example, Findings, Interval, Requirement
from bn_vuln.config import Mend
from bn_vuln.errors import BnvulnError
from bn_vuln.reporting import audit_numbers as numbers
from bn_vuln.reporting import audit_page

MINUS, ARROW, DASH = "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}", "\N{EN DASH}"
NASTY = "<script>alert('x')</script> & \"q\" $a_b$ <b>"


class Text(HTMLParser):
    """What is read on a page, in one line; and that each element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.space(tag)
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.space(tag)

    def space(self, tag: str) -> None:
        self.parts += [] if tag in ("strong", "b", "a", "code", "wbr") else [" "]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.parts.append(data)


def read(page: str) -> str:
    return " ".join("".join(Text(page).parts).split())


def section(page: str, name: str) -> str:
    """What is read in one section of a page."""
    (found,) = re.findall(f'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    return read(found)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: audit_page.html(make(), None) for name, make in made.CASES.items()}


# ---------------------------------------------------------------- the page


def test_every_page_is_whole_and_loads_nothing(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        assert not re.search(r"<script|<link|<iframe|javascript:|@import|url\((?!#)", page), name
        addresses = re.findall(r'(?:href|src)="([^"]*)"', page)
        assert {address[0] for address in addresses} == {"#"}, name
        assert {address[1:] for address in addresses} <= set(re.findall(r'id="([^"]*)"', page)), name
        assert not re.search(r"\b(None|nan|inf)\b", read(page).replace("ord inf", "")), name


def test_the_answer_comes_first(pages: dict[str, str]) -> None:
    text = section(pages["gains"], "answer")
    order = ["Raise c by 0.3 times", "bnvuln mend resnet20.keras", "If you train again", "only adversarial training"]
    order += ["Clean", "92%", "95% interval 87 to 97%, 100 images", "With noise", "83%", "Under attack", "42%"]
    place = 0
    for part in order:
        place = text.find(part, place)
        assert place >= 0, part
    assert text.index("Changes of each pixel by 2.3/255 leave half of the 92%") < text.index(order[0])
    assert "moves each pixel by at most 2/255" in text
    assert "upper bound" not in text


def test_masked_gradients_are_said_before_all_numbers(pages: dict[str, str]) -> None:
    text = section(pages["masked"], "answer")
    assert text.startswith("These numbers are upper bounds: gradients are masked.")
    assert "check 4: 93.0% of 100 examples have no usable input gradient" in text
    assert "\N{LESS-THAN OR EQUAL TO} 81%" in text


def test_accuracies_and_the_half_beside_references(pages: dict[str, str]) -> None:
    text = section(pages["gains"], "fragile")
    assert "noise 0.2 Gaussian noise of standard deviation 0.2, 100 images 74.0 (65.4 to 82.6)" in text
    assert "strong at 2/255" in text
    assert "resnet20.keras 92.0 2.3/255 ResNet-20 with batch norm (3 seeds) 91.5 1.9/255" in text
    assert "VGG8 with batch norm (1 seed) 83.8 1.6/255" in text
    assert "No reference for your data" not in text
    assert "No reference for your data" in section(pages["many layers"], "fragile")


def test_a_curve_that_stays_above_half_says_so() -> None:
    points = made.curve(0.92, 2.3 / 255)
    for half, text in ((None, "above 2/255"), (points[0].eps, "at most 0.062/255")):
        findings = made.audit(made.model(half_eps=half, curve=points[:6]))
        assert f"resnet20.keras 92.0 {text} " in section(audit_page.html(findings, None), "fragile")


def test_layers_have_their_numbers_and_what_high_means(pages: dict[str, str]) -> None:
    text = section(pages["gains"], "layers")
    assert "bn_1 cause batch 16 0.001 0.42 from 0.0091 to 110 times the median 0 0.0% 3.5 2.6 90.0% 0.04" in text
    assert "they prove nothing" in text
    assert "A cause: bn_1. Changing this layer alone gains, confirmed." in text
    assert "Amplification: how many times further" in text
    assert "Through it: amplification after the layer divided by that before it." in text
    assert "Highest here: bn_18 (7.7). Of the output (logits): 8.2." in text
    assert "Momentum of the tracked statistics: 0.99 in all of them." in text
    assert "frozen" not in text


@pytest.mark.parametrize(
    ("mend", "gains"),
    [
        (Mend(relative_c=0.3, reestimate=True), True),
        (Mend(relative_c=0.3, layers=("bn_1",)), False),
        (Mend(relative_c=0.3, layers=("bn_1", "bn_2")), True),
        (Mend(reestimate=True), True),
    ],
)
def test_only_what_gains_alone_is_called_a_cause(mend: Mend, gains: bool) -> None:
    one = made.finalist("x", mend, 0.9, 0.4, 0.08).model_copy(update={"gains": gains})
    text = section(audit_page.html(made.audit(made.model(finalists=(one,))), None), "layers")
    assert "No single layer is called a cause here" in text
    assert "A cause" not in text
    assert "bn_1 batch" in text


def test_where_statistics_are_estimated_again_a_cause_gains_beyond_them() -> None:
    alone = made.finalist("s", Mend(reestimate=True), 0.9, 0.4, 0.08)
    one = made.finalist("x", Mend(relative_c=0.3, layers=("bn_1",), reestimate=True), 0.9, 0.4, 0.12)
    same = one.model_copy(update={"beyond_statistics": made.difference("strong", 0.48, 0.52)})
    assert made.model(finalists=(alone, one)).causes == {"bn_1"}
    assert made.model(finalists=(alone, same)).causes == set()
    assert made.model(finalists=(same,)).causes == set()


def test_columns_without_a_number_are_left_out(pages: dict[str, str]) -> None:
    text = section(pages["skipped"], "layers")
    assert "ln layer 8 1e-6 1" in text
    assert "were not measured" in text
    for word in ("Spread", "Dead", "Below", "Through", "Highest"):
        assert word not in text


def test_frozen_layers_and_other_kinds_stand_in_one_table(pages: dict[str, str]) -> None:
    text = section(pages["long names"], "layers")
    assert f"group group 64 1e-5 0.42 {DASH} {DASH} {DASH} 1.8 1.1 {DASH} {DASH}" in text
    assert "frozen batch* 64" in text
    assert "* frozen: 1 of 3 layers are not trained." in text


def test_gains_lie_on_a_logarithmic_axis() -> None:
    layers = (made.layer("a", 1, spread=4.0), made.layer("b", 2, spread=110.0))
    page = audit_page.html(made.audit(made.model(layers=layers)), None)
    assert "1/1,000" in page  # of 110, the next power of ten
    places = re.findall(r'<path d="M([\d.]+) 5H([\d.]+)"', page)
    assert places == [(f"{50 - 50 * np.log10(x) / 3:.2f}", f"{50 + 50 * np.log10(x) / 3:.2f}") for x in (4, 110)]


def test_what_ifs_with_their_number_and_the_confirmed(pages: dict[str, str]) -> None:
    text = section(pages["gains"], "what-if")
    assert "c + 0.3 m in all layers, gain kept gains" in text
    assert f"strong 2/255 42.0 {ARROW} 50.0 +8.0 +3.0 to +13.0" in text
    assert f"clean 92.0 {ARROW} 91.5 {MINUS}0.5 {MINUS}2.5 to +1.5" in text
    assert "The intervals are 99.2%" in text
    assert f"strong 2/255, beyond statistics 43.0 {ARROW} 50.0 +7.0" in text
    assert "Number of candidates tried: 16." in text
    assert "no more than 1 point." in text
    assert "A diagnosis, never an advice" in text
    best = re.findall(r'class="best">([\d.]+)<', pages["gains"])
    assert best == ["92.0", "92.0", "86.0", "51.0", "86.0", "51.0"]


def test_nothing_helps_is_an_answer(pages: dict[str, str]) -> None:
    page = pages["nothing helps"]
    assert "Nothing that these 100 images can show helps" in section(page, "answer")
    assert "gains </span>" not in page
    assert '<span class="tag">gains</span>' not in page
    assert "No single layer is called a cause here" in section(page, "layers")


def test_no_normalization_and_nothing_measured(pages: dict[str, str]) -> None:
    page = pages["no normalization"]
    assert "BN may have been folded at export" in section(page, "answer")
    assert "It has no normalization layer." in section(page, "layers")
    assert "There is no normalization layer to change." in section(page, "what-if")
    page = pages["skipped"]
    assert section(page, "answer").count("not measured") == 4
    assert "No accuracies were measured. How far" in section(page, "fragile")
    assert "The accuracy along eps was not measured." in section(page, "fragile")
    assert "No change was confirmed, and none was tried." in section(page, "what-if")
    assert "corruptions: 40 s more than --time allows" in section(page, "how")


def test_refused_statistics_say_why() -> None:
    findings = made.audit(made.model(refused="160 values a channel, under 200"))
    text = section(audit_page.html(findings, None), "what-if")
    assert "Statistics were not estimated again: 160 values a channel, under 200." in text


def test_a_pair_is_side_by_side_with_paired_differences(pages: dict[str, str]) -> None:
    page = pages["pair"]
    answer = section(page, "answer")
    assert "resnet20.keras 42%" in answer
    assert "resnet20-fixup.keras 56%" in answer
    assert f"Second {MINUS} first, on the same images: +14.0 points 95% interval +5.0 to +23.0" in answer
    fragile = section(page, "fragile")
    assert f"90.0 (84.1 to 95.9) {MINUS}2.0 ({MINUS}5.0 to +1.0)" in fragile
    assert "resnet20-fixup.keras 90.0 3.4/255" in fragile
    assert "resnet20-fixup.keras It has no normalization layer." in section(page, "layers")


def test_how_it_was_done(pages: dict[str, str]) -> None:
    text = section(pages["long names"], "how")
    assert "strong 2/255 >= .4 42.0% met noise .1 >= .9 83.0% not met" in text
    for part in ("5,000 images of the training split", "500 queries", "leaves nearest to half", "6 min 52 s",
                 "keras 3.15.1", "Intel Xeon, 2 cores", "272,474 parameters", "32 x 32 x 3"):  # fmt: skip
        assert part in text


def test_flags_that_make_no_bounds_are_listed_with_the_run() -> None:
    page = audit_page.html(made.audit(made.model(flags=(made.MASKED,))), None)
    assert "check 4: 93.0%" in section(page, "how")
    assert "check 4" not in section(page, "answer")


def test_names_of_users_are_escaped(tmp_path: Path) -> None:
    layers = (made.layer(NASTY, 1), made.layer("b", 2))
    models = [
        made.model(
            f"{i}{NASTY}", layers=layers, notes=(NASTY,), refused=NASTY, found=((NASTY, NASTY),),
            advice=(Advice(kind="nothing", text=NASTY, command=NASTY),),
            finalists=(made.finalist(NASTY, Mend(relative_c=1, layers=(NASTY,)), 0.9, 0.4, 0.08),),
            examples=(Example(label=NASTY, clean=NASTY, attacked=NASTY, eps=0.1),),
        )
        for i in range(2)
    ]  # fmt: skip
    findings = made.audit(*models, data=NASTY, command=NASTY, skipped=(NASTY,), device=NASTY, options={NASTY: NASTY})
    page = audit_page.write(made.write_case(tmp_path, findings)).read_text()
    assert "<script" not in page
    assert "<b>" not in re.sub(r"<b>Below c:</b>", "", page)
    assert read(page).count("<script>alert('x')</script> & \"q\" $a_b$ <b>") > 20
    assert f"taken for {NASTY}" in section(page, "fragile")


# ---------------------------------------------------------------- example images


def decoded(page: str) -> list[np.ndarray]:
    texts = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in texts]


def test_examples_show_clean_attacked_and_the_change_amplified(tmp_path: Path) -> None:
    findings = made.audit(made.model(examples=(Example(label="cat", clean="cat", attacked="dog", eps=2 / 255),)))
    made.write_case(tmp_path, findings)
    clean = np.full((1, 2, 2, 1), 100 / 255, np.float32)
    attacked = clean.copy()
    attacked[0, 0, 0, 0] += 2 / 255
    attacked[0, 1, 1, 0] -= 2 / 255
    np.savez(tmp_path / "examples_0.npz", clean=clean, attacked=attacked)
    page = audit_page.write(tmp_path).read_text()
    before, after, change = decoded(page)
    assert before.tolist() == [[100, 100], [100, 100]]
    assert after.tolist() == [[102, 100], [100, 98]]
    assert change.tolist() == [[228, 128], [128, 28]]  # 50 times 2 levels, around grey
    text = section(page, "fragile")
    assert "50 times as strong" in text
    assert "cat taken for cat attacked taken for dog" in text


def test_each_model_of_a_pair_has_its_images(tmp_path: Path) -> None:
    page = audit_page.write(made.write_case(tmp_path, made.pair())).read_text()
    assert len(decoded(page)) == 2 * 4 * 3
    assert decoded(page)[0].shape == (32, 32, 3)
    assert "changed: resnet20-fixup.keras" in section(page, "fragile")


def test_without_images_the_page_has_none_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    made.write_case(tmp_path, made.audit())
    (tmp_path / "examples_0.npz").unlink()
    assert "Images that the attack changed" not in audit_page.write(tmp_path).read_text()
    (tmp_path / "examples_0.npz").write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(BnvulnError, match=r"examples_0\.npz: not the example images of an audit"):
        audit_page.write(tmp_path)


def test_the_page_is_the_same_for_the_same_findings(tmp_path: Path) -> None:
    folder = made.write_case(tmp_path, made.pair())
    first = audit_page.write(folder).read_bytes()
    assert audit_page.write(folder) == folder / "index.html"
    assert (folder / "index.html").read_bytes() == first


# ---------------------------------------------------------------- text, rows, figures, numbers


def test_the_text_has_the_answer_first() -> None:
    text = audit_page.text(made.pair())
    lines = text.splitlines()
    assert lines[:2] == [
        "resnet20.keras, folder:photos, confirmed on 100 images that chose nothing",
        "  Changes of each pixel by 2.3/255 leave half of the 92% that are correct on",
    ]
    flat = " ".join(text.split())
    assert "correct (95% interval): clean 92% (87 to 97); noise 0.1 83% (76 to 90); strong 2/255 42% (32 to 52)" in flat
    assert "strong +14.0 (+5.0 to +23.0)" in flat
    assert max(len(line) for line in lines if not line.startswith("     bnvuln")) <= 79
    assert "upper bounds" not in text
    text = audit_page.text(made.masked())
    assert "  These numbers are upper bounds: gradients are masked.\n  check 4: 93.0%" in text


def test_the_text_says_what_is_not_met_not_measured_or_left_out() -> None:
    assert "met: strong 2/255 >= .4 (42.0%)\nNOT met: noise .1 >= .9 (83.0%)" in audit_page.text(made.long_names())
    text = audit_page.text(made.everything_skipped())
    assert "clean not measured; noise 0.1 not measured; strong 2/255 not measured" in " ".join(text.split())
    assert "left out to keep the time: corruptions: 40 s more" in text


def test_a_required_eps_is_no_percentage() -> None:
    required = Requirement(text="half-eps >= 2/255", value=2.3 / 255, met=True)
    findings = made.audit(requirements=(required,))
    assert "met: half-eps >= 2/255 (2.3/255)" in audit_page.text(findings)
    assert "half-eps >= 2/255 2.3/255 met" in section(audit_page.html(findings, None), "how")


def test_rows_for_tables_are_plain_and_of_equal_fields() -> None:
    for make in made.CASES.values():
        for rows in audit_page.tables(make()).values():
            assert len({tuple(row) for row in rows}) <= 1
    rows = audit_page.tables(made.pair())
    assert {name: len(every) for name, every in rows.items()} == {
        "accuracies": 16, "curve": 22, "layers": 19, "what_ifs": 17, "finalists": 11, "advice": 4,
    }  # fmt: skip
    strong = rows["accuracies"][7]
    assert (strong["model"], strong["name"], strong["accuracy"], strong["n"]) == ("resnet20.keras", "strong", 0.42, 100)
    layer = rows["layers"][1]
    assert (layer["name"], layer["gain_100"], layer["variance_50"], layer["cause"]) == ("bn_1", 110.0, 1.0, True)
    assert rows["finalists"][5]["difference"] == pytest.approx(0.08)
    assert rows["finalists"][6]["name"] == "strong 2/255, beyond statistics"
    assert [row["relative_c"] for row in rows["what_ifs"][:3]] == [0, 0, 0.01]
    assert audit_page.tables(made.everything_skipped())["layers"][0]["gain_0"] is None


def test_figures_are_those_that_there_are_numbers_for() -> None:
    found = audit_page.figures(made.pair())
    assert set(found) == {"curve", "layers"}
    assert [line.get_label() for line in found["curve"].axes[0].lines if "." in line.get_label()] == [
        "resnet20.keras", "resnet20-fixup.keras",
    ]  # fmt: skip
    x, y = found["curve"].axes[0].lines[0].get_data()
    assert list(x) == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64])
    assert y[5] == pytest.approx(92 * 0.5 ** ((2 / 2.3) ** 1.4))
    assert len(found["layers"].axes) == 4
    assert set(audit_page.figures(made.no_normalization())) == {"curve"}
    assert audit_page.figures(made.everything_skipped()) == {}


@pytest.mark.parametrize(
    ("interval", "text"),
    [((0.453, 0.384, 0.522), "45%"), ((0.9771, 0.97, 0.985), "97.7%"), ((0.0, 0.0, 0.037), "0.0%")],
)
def test_large_numbers_have_the_digits_that_their_interval_supports(
    interval: tuple[float, float, float], text: str
) -> None:
    value, low, high = interval
    assert numbers.rounded(Interval(value=value, low=low, high=high)) == text


def test_numbers_and_eps_are_short() -> None:
    assert [numbers.number(x) for x in (1e-5, 0.001, 0.0423, 4.13, 110.2, 3.2e6)] == [
        "1e-5", "0.001", "0.042", "4.1", "110", "3.2e6",
    ]  # fmt: skip
    inf, two = made.audit(), made.many_layers()
    assert [numbers.eps_text(inf, eps) for eps in (2 / 255, 2.34 / 255, 0.02)] == ["2/255", "2.3/255", "5.1/255"]
    assert numbers.eps_text(two, 0.5234) == "0.52"
    assert numbers.points(-0.1234) == f"{MINUS}12.3"


def test_models_of_equal_file_names_keep_their_folders() -> None:
    findings: Findings = made.audit(made.model("a/m.keras"), made.model("b/m.keras"))
    assert numbers.short_names(findings) == ["a/m.keras", "b/m.keras"]
    assert numbers.short_names(made.long_names()) == ["model.keras"]
