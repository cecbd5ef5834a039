"""``vit_vs_cnn_page.py``: what is concluded from figures that are made up, the tables and the page."""

import re
import sys

import numpy as np
import pytest

from tests.examples import check_picture
from tests.examples.test_figures import has_colour


@pytest.fixture
def page():
    import vit_vs_cnn_page

    return vit_vs_cnn_page


# --- conclusions ---------------------------------------------------------------------------------------------------

SHALLOW = ["embedding", "layer1.0", "layer2.0", "layer3.0"]
DEEP = ["embedding", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
EVEN = 16.0
LUCK = np.array([-0.01, 0.0, 0.01])  # of three seeds


def setting(page, cnn=SHALLOW):
    layers = {"vit": ["embedding", *(f"blocks.{i}" for i in range(4))], "cnn": cnn}
    return page.Setting(layers, {"vit": 400, "cnn": 80}, ["star", "ring", "bolt"], (1, 20), 0.1, 32, EVEN)


def made_up(page, cnn=SHALLOW, cues=True, **changes):
    """Figures by which nothing is different from anything, but for ``changes`` {figure: mean over the seeds}."""
    means = {"kappa": 0.3, "distance": np.full((4, 4), 0.7 * EVEN), "start_distance": np.full((4, 4), EVEN)}
    means |= {"distance": np.array([[0.6, 0.8, 0.8, 0.5]] * 4) * EVEN}
    for kind, layers in setting(page, cnn).layers.items():
        means |= {f"accuracy_{kind}": 0.9, f"cka_{kind}": np.full((len(layers),) * 2, 0.5)}
        means |= {f"start_cka_{kind}": means[f"cka_{kind}"], f"few_shot_{kind}_mean": np.full((len(layers), 2), 0.6)}
        if cues:
            means |= {f"bias_{kind}": 0.5, f"coverage_{kind}": 0.8}
            means |= {f"{figure}_by_class_{kind}": np.full(3, 0.5) for figure in ("bias", "coverage")}
    means |= {"cka_both": np.full((5, len(cnn)), 0.5), "few_shot_vit_class": np.full((5, 2), 0.6)}
    means |= {"kappa_conflict": 0.2} if cues else {}
    return {name: np.array([np.array(mean) + luck for luck in LUCK]) for name, mean in (means | changes).items()}


def judged(page, cnn=SHALLOW, **changes):
    return {claim.key: claim for claim in page.judge(made_up(page, cnn, **changes), setting(page, cnn))}


def held(page, cnn=SHALLOW, **changes):
    return {key for key, claim in judged(page, cnn, **changes).items() if claim.held}


def test_claims_of_shape_and_texture_follow_the_numbers(page):
    assert held(page) == set() and len(judged(page)) == 8
    assert held(page, bias_vit=0.6) == {"vit_shape", "vit_more_shape"}
    assert held(page, bias_vit=0.3) == set()
    assert held(page, bias_cnn=0.3) == {"cnn_texture", "vit_more_shape"}
    assert held(page, bias_vit=0.2, bias_cnn=0.3) == {"cnn_texture"}
    numbers = judged(page, bias_vit=0.6, coverage_vit=0.75)["vit_shape"].numbers
    assert numbers == "shape bias 0.60 ± 0.01, coverage 75.0 ± 1.0 %"
    assert not {"vit_shape", "cnn_texture", "vit_more_shape"} & judged(page, cues=False).keys()


def test_claims_of_layers_follow_the_numbers(page):
    alike = np.eye(5) + 0.7 * (1 - np.eye(5))
    assert held(page, cka_vit=alike) == {"vit_uniform"} and held(page, cka_vit=0.4 * alike) == set()
    assert "CKA 0.70 ± 0.01 against 0.50 ± 0.01" in judged(page, cka_vit=alike)["vit_uniform"].numbers
    # the diagonal does not count
    assert held(page, cka_vit=np.full((5, 5), 0.5) + 9 * np.eye(5)) == set()

    both = np.full((5, 4), 0.2)
    both[:2, 1] = 0.6  # the ViT's first half is like the CNN's second layer
    assert held(page, cka_both=both) == {"early_alike"} and held(page, cka_both=both[::-1, ::-1]) == set()
    both = np.full((5, 4), 0.2)
    both[:2, 3] = 0.6  # and here like its last, which is not early
    assert held(page, cka_both=both) == set()
    both[:2, 1] = both[-2:, 0] = 0.6  # the ViT's last half is like the CNN's first layer, which is not late
    assert held(page, cka_both=both) == {"early_alike"}


def test_stages_are_told_where_a_stage_has_two_blocks(page):
    assert "cnn_stages" not in judged(page) and "cnn_stages" in judged(page, DEEP)
    cka = np.full((5, 5), 0.5)
    cka[1, 2] = cka[3, 4] = 0.55  # a little, for what is between is not among them
    assert held(page, DEEP, cka_cnn=cka) == {"cnn_stages"}
    cka[1, 2] = cka[3, 4] = 0.8
    assert held(page, DEEP, cka_cnn=cka) == {"cnn_stages"}
    cka[2, 3] = 0.9  # across the border
    assert held(page, DEEP, cka_cnn=cka) == set()
    cka[2, 3], cka[0, 1] = 0.5, 0.9  # what comes before the stages is none of them
    assert held(page, DEEP, cka_cnn=cka) == {"cnn_stages"}


def test_claims_of_attention_follow_the_numbers(page):
    def first(*shares):
        return np.array([shares] + 3 * [[0.6, 0.8, 0.8, 0.5]]) * EVEN

    assert held(page, distance=first(0.4, 0.5, 0.6, 0.95)) == {"vit_far"}
    assert held(page, distance=first(0.7, 0.7, 0.7, 0.7)) == {"vit_not_near"}
    assert held(page, distance=first(0.95, 0.95, 0.95, 0.95)) == {"vit_far", "vit_not_near"}
    assert held(page, distance=first(0.95, 0.95, np.nan, np.nan)) == {"vit_far", "vit_not_near"}
    assert held(page, distance=first(0.5, 0.7, 0.7, 0.7)[::-1]) == set()  # what is deeper does not count
    numbers = judged(page, distance=first(0.4, 0.5, 0.6, 0.95))["vit_far"].numbers
    assert "15.2 ± 0.0 px far, 95 ± 0 % (before training 100 ± 0 %) of the 16.0 px" in numbers


def test_claims_of_probes_follow_the_numbers(page):
    early, late = ([[0.0, x] for x in steps] for steps in ([0.1, 0.5, 0.6, 0.6, 0.6], [0.1, 0.1, 0.1, 0.6]))
    assert held(page, few_shot_vit_mean=early, few_shot_cnn_mean=late) == {"vit_classes_early"}
    late, early = ([[0.0, x] for x in steps] for steps in ([0.1, 0.1, 0.1, 0.6, 0.6], [0.1, 0.6, 0.6, 0.6]))
    assert held(page, few_shot_vit_mean=late, few_shot_cnn_mean=early) == set()
    steps = [[0.0, x] for x in (0.1, 0.2, 0.35, 0.5, 0.6)]
    claim = judged(page, few_shot_vit_mean=steps, few_shot_cnn_mean=steps[::4] + steps[4:] * 2)["vit_classes_early"]
    assert "50 ± 1 % against 100 ± 0 %" in claim.numbers  # 0.25 of 0.5 above chance; the CNN's is the mean of two 0.6
    flat = {f"few_shot_{kind}_mean": np.full((n, 2), 0.1) for kind, n in (("vit", 5), ("cnn", 4))}
    assert not re.search("inf|nan", judged(page, **flat)["vit_classes_early"].numbers)


def test_tables_have_the_mean_and_the_deviation_of_every_figure(page):
    table = made_up(page, bias_vit=0.6, bias_by_class_cnn=[0.1, 0.2, 0.3])
    lines = [re.split(r"  +", line) for line in page.as_text(table, setting(page)).splitlines()]
    for row in (
        ["parameters", "400", "80"],
        ["test accuracy, %", "90.0 ± 1.0", "90.0 ± 1.0"],
        ["shape bias", "0.60 ± 0.01", "0.50 ± 0.01"],
        ["bolt", "50 ± 1 (50)", "30 ± 1 (50)"],
        ["few-shot accuracy, %", "k = 1", "k = 20"],
        ["ViT, class token: blocks.3", "60.0 ± 1.0", "60.0 ± 1.0"],
        ["CNN, mean of places: layer3.0", "60.0 ± 1.0", "60.0 ± 1.0"],
        ["blocks.0", "8.0 ± 0.0", "10.8 ± 0.0", "12.8 ± 0.0"],
    ):
        assert row in lines, row
    table.pop("few_shot_vit_class")  # of a ViT without one
    assert "class token" not in page.as_text(table, setting(page))
    text = page.as_text(made_up(page, cues=False), setting(page))
    assert "shape" not in text and "κ: 0.30 ± 0.01 on test images\n" in text


# --- the page ------------------------------------------------------------------------------------------------------


def panels(page, monkeypatch, path, table, setting):
    """The axes of the page, by their titles, once it is drawn; without a path it is not written."""
    import figures

    seen, save = [], figures.save
    write = save if path else lambda figure, path: figures.plt.close(figure)
    monkeypatch.setattr(figures, "save", lambda figure, path: seen.extend(figure.axes) or write(figure, path))
    page.draw(table, setting, path)
    return {title: axes for axes in seen if (title := axes.get_title(loc="left"))}


def test_the_page(page, tmp_path, monkeypatch):
    table, path = made_up(page), tmp_path / "page.png"
    table["bias_by_class_vit"] = np.array([[0.2, np.nan, 0.9]] * 3)  # no answers for one
    titles = [title.partition(":")[0] for title in panels(page, monkeypatch, path, table, setting(page))]
    assert titles == 3 * ["CKA"] + ["few-shot accuracy, %", "attention distance, px (image 32)", "shape bias"]
    check_picture(path)
    assert all(has_colour(path, colour) for colour in page.COLOURS.values())


def test_panels_show_what_was_measured(page, monkeypatch):
    table = made_up(page, DEEP, cues=False)
    found = panels(page, monkeypatch, None, table, setting(page, DEEP))
    assert len(found) == 5 and "shape bias" not in found
    both = found["CKA: ViT (up) and CNN (across)"]
    assert [label.get_text() for label in both.get_xticklabels()] == DEEP
    assert [label.get_text() for label in both.get_yticklabels()] == setting(page).layers["vit"]
    np.testing.assert_allclose(both.images[0].get_array(), table["cka_both"].mean(0))
    probes = found["few-shot accuracy, %: k = 20 (dashed 1)"]
    assert [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in probes.lines] == [(1, pytest.approx(60))] * 6
    heads = found["attention distance, px (image 32)"]
    assert len(heads.collections[0].get_offsets()) == 3 * 4 * 4  # seeds, layers, heads


def test_without_matplotlib_no_page_is_drawn(page, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "figures", None)
    page.draw({}, None, None)
    assert "no page was drawn: it needs matplotlib, pip install " in capsys.readouterr().out
