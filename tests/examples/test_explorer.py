"""``explorer.html``: what is written into it, that it needs nothing else, and what a browser makes of it."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.analysis.rollout import rollout
from minivit.models import create_model
from tests.examples import ROOT
from tests.examples.test_explain import TINY, read_maps, read_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def explorer():
    import explorer

    return explorer


# --- the page ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**32), st.sampled_from([0.0, 1e-3, 1.0, 40.0]))
def test_quantised_maps_are_right_to_half_a_step(maps, tokens, seed, scale):
    from explorer import quantised

    rng = np.random.default_rng(seed)
    weights = scale * rng.random((maps, tokens, tokens)).astype(np.float32) ** rng.integers(1, 9)
    weights[rng.random((maps, tokens)) < 0.3] = 0  # null rows
    found, largest = read_maps({"heads": maps - 2} | quantised(weights), tokens)
    np.testing.assert_array_equal(largest[..., 0], weights.max(-1).astype(np.float32))
    assert (abs(found - weights) <= largest * (1 / 510 + 1e-6)).all()


@given(
    st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 30), st.integers(0, 10**5)
)
def test_what_is_planned_fits_and_the_last_layers_of_the_first_images_come_first(images, heads, tokens, budget):
    from explorer import plan

    planned = plan(images, heads, tokens, budget)
    size = 4 / 3 * tokens * (tokens + 4)
    maps = sum(2 * len(heads) + sum(heads[layer] for layer in chosen) for chosen in planned)
    assert maps * size <= budget and len(planned) <= images
    assert planned or 2 * len(heads) * size > budget
    if len(set(heads)) == 1:
        complete = [len(chosen) for chosen in planned]
        assert complete == sorted(complete, reverse=True) and sum(0 < count < len(heads) for count in complete) <= 1
        assert all(chosen == set(range(len(heads) - len(chosen), len(heads))) for chosen in planned)
    whole = plan(images, heads, tokens, budget=10**9)
    assert whole == [set(range(len(heads)))] * images


def make_page(explorer, path, names, budget=10**6, heads=2, layers=3):
    """A page of random maps: what was left out, and the maps of each image, (heads, N, N) a layer."""
    model = create_model("vit_nano_patch8_32", **TINY | {"img_size": (16, 24)})
    tokens, rng = model.num_prefix_tokens + 6, np.random.default_rng(0)
    page = explorer.Page(model, "a network", len(names), budget)
    maps = [list(rng.dirichlet(np.full(tokens, 0.3), (layers, heads, tokens))) for _ in names]
    for name, of_image in zip(names, maps):
        page.add(name, "a <b>class</b>", np.zeros((16, 24, 3), np.uint8), of_image)
    return page.write(path), maps


def test_a_page_that_would_be_too_large_says_what_it_lacks(explorer, tmp_path):
    size = 4 / 3 * 7 * 11  # of a map of 7 tokens
    note, _ = make_page(explorer, tmp_path / "page.html", "abc", budget=24.5 * size, heads=5)
    assert note == "to keep the page small, it has 2 of 3 images, and the mean of heads only in 4 of 6 layers"
    page = read_page(tmp_path / "page.html")
    assert page["note"] == f"T{note[1:]}." and [image["name"] for image in page["images"]] == ["a", "b"]
    assert [[layer["heads"] for layer in image["layers"]] for image in page["images"]] == [[0, 5, 5], [0, 0, 0]]
    note, _ = make_page(explorer, tmp_path / "none.html", "abc", budget=10)
    assert note == "there is no page to explore: the maps of one image would be too large for it"
    assert not (tmp_path / "none.html").exists()


def test_the_template_needs_nothing_from_elsewhere():
    text = (ROOT / "examples" / "explorer.html").read_text("utf-8")
    assert not re.search(
        r"https?:|//\w+\.|src=|href=|@import|\bimport\b|url\(|fetch\(|XMLHttpRequest|<link|<iframe", text
    )
    assert "default-src 'unsafe-inline' data:" in text  # and the browser refuses what is not in the page
    assert text.count(">DATA<") == 1 and len(text.splitlines()) < 300


EVIL = "\"'></script><script>document.title='evil'</script><!--.png"


def test_no_name_ends_the_script_that_holds_it(explorer, tmp_path):
    make_page(explorer, tmp_path / "page.html", [EVIL])
    text = (tmp_path / "page.html").read_text("utf-8")
    template = (ROOT / "examples" / "explorer.html").read_text("utf-8")
    for tag in ("<script", "</script", "<!--"):
        assert text.count(tag) == template.count(tag)
    assert read_page(tmp_path / "page.html")["images"][0]["name"] == EVIL


# --- the page in a browser -----------------------------------------------------------------------------------------

ACTIONS = """<script>
  const press = (id, key) => $(id).dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const point = (name, x, y, buttons) => {
    const box = $("stage").getBoundingClientRect();
    const clientX = box.left + x * box.width, clientY = box.top + y * box.height;
    $("stage").dispatchEvent(new PointerEvent(name, { clientX, clientY, buttons }));
  };
  const seen = [];
  const look = () => seen.push(`${$("who").textContent} | ${$("where").textContent} | ${location.hash}`);
  look();
  seen.push([...$("most").children].map((item) => [...item.childNodes].map((node) => node.textContent)));
  seen.push($("name").textContent, document.title);
  press("stage", "ArrowUp"); press("stage", "ArrowUp"); look();  // above the image: the class token
  press("stage", "ArrowRight"); look();                          // the first patch
  press("stage", "ArrowDown"); look();
  point("pointermove", 0.99, 0.01, 0); look();                   // a look, which the address does not keep
  point("pointerleave", 2, 2, 0); look();
  point("pointerdown", 0.5, 0.99, 1); look();
  press("maps", "ArrowUp"); look();
  $("maps").querySelector("[aria-label='layer 1, rollout']").click(); look();
  $("images").querySelectorAll("input")[1].click(); look();
  $("numbers").click();
  $("note").textContent = JSON.stringify(seen);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_what_the_address_names_and_follows_keys_and_pointer(explorer, tmp_path):
    path = tmp_path / "page.html"
    _, maps = make_page(explorer, path, [EVIL, "b.png"])
    path.write_text(path.read_text("utf-8").replace("</body>", f"{ACTIONS}</body>"), "utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    address = "#image=0&layer=2&head=1&patch=5"
    page = subprocess.run(
        [CHROMIUM, *options, f"file://{path}{address}"], capture_output=True, text=True, timeout=60, check=True
    ).stdout

    told = html.unescape(re.search(r'<span id="note">(.*?)</span>', page, re.DOTALL)[1])
    first, most, name, title, *seen = json.loads(told)
    assert first == f"Patch in row 2, column 3 | layer 3, head 2: attends to | {address}"
    assert (name, title) == (f"{EVIL}: a <b>class</b>", "Attention explorer")
    tokens = ["class token", *(f"row {row}, column {column}" for row in (1, 2) for column in (1, 2, 3))]
    row = maps[0][2][1][1 + 5]
    assert [token for token, _ in most] == [tokens[i] for i in np.argsort(-row)[:5]]
    shares = [float(share.removesuffix(" %")) for _, share in most]
    np.testing.assert_allclose(shares, 100 * -np.sort(-row)[:5], atol=100 * row.max() / 510 + 0.051)

    at, third = "image=0&layer=2&head=1&patch=", "layer 3, head 2: attends to"
    assert seen == [
        f"Class token | {third} | #{at}class+token",
        f"Patch in row 1, column 1 | {third} | #{at}0",
        f"Patch in row 2, column 1 | {third} | #{at}3",
        f"Patch in row 1, column 3 | {third} | #{at}3",
        f"Patch in row 2, column 1 | {third} | #{at}3",
        f"Patch in row 2, column 2 | {third} | #{at}4",
        "Patch in row 2, column 2 | layer 2, head 2: attends to | #image=0&layer=1&head=1&patch=4",
        "Patch in row 2, column 2 | layer 1, rollout: made of | #image=0&layer=0&head=rollout&patch=4",
        "Patch in row 2, column 2 | layer 1, rollout: made of | #image=1&layer=0&head=rollout&patch=4",
    ]
    assert re.search(r'id="stage"[^>]* aria-valuenow="5"', page) and 'aria-valuetext="patch in row 2, column 2' in page
    cells = re.search(r'<div id="cells"[^>]*>(.*?)</div>', page, re.DOTALL)[1]
    numbers = [float(number) for number in re.findall(r">([\d.]+)<", cells)]
    rolled = rollout([maps[1][0][None]])[0, 1 + 4]
    np.testing.assert_allclose(numbers, 100 * rolled[1:], atol=100 * rolled.max() / 510 + 0.051)
    assert [bool(mark) for mark in re.findall(r"<span class=\"(\w*)\"", cells)] == [i == 4 for i in range(6)]
