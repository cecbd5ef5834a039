"""The attention explorer: one HTML page that holds images and attention maps, and needs nothing else.

``explorer.html`` is the page; here its data is filled in, as JSON:

    network   its name
    size      of the images in pixels, [height, width]
    grid      of the patches, [rows, columns]
    prefix    the names of the tokens that come before the patches, such as "class token"
    shares    are the weights of a row shares of 1? Those of rectified attention are not
    note      what was left out
    images    for each its name, the network's answer, the picture (a PNG as data URL), and its layers

A layer has the number of its ``heads`` and a stack of maps (N, N): the mean over heads, the rollout up to this layer,
then the heads. Each row of a map is quantised to bytes, in parts of 255 of its largest number: these bytes are
``weights``, and the largest numbers ``largest``, float32 with the least byte first; both in base64.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minivit.analysis.rollout import rollout
from minivit.nn import Module

TEMPLATE = Path(__file__).with_name("explorer.html")
BUDGET = 6_000_000  # characters: a page much larger is slow to open on a phone


class Page:
    """A page for ``count`` images of ``model``; those are in it for which there is room."""

    def __init__(self, model: Module, name: str, count: int, budget: int = BUDGET):
        self.model, self.name, self.count, self.budget = model, name, count, budget
        self.images: list[dict[str, Any]] = []
        self.planned: list[set[int]] = []
        self.shares = True
        self.layers = 0

    def add(self, name: str, answer: str, picture: np.ndarray, maps: Sequence[np.ndarray]) -> None:
        """The next image: what the network answers, its ``picture`` (H, W, 3) bytes, its ``maps`` (heads, N, N)."""
        if not self.layers:
            self.layers = len(maps)
            self.planned = plan(self.count, [len(a) for a in maps], maps[0].shape[-1], self.budget)
        if len(self.images) < len(self.planned):
            self.shares &= all(bool((abs(a.sum(-1) - 1) < 1e-3).all()) for a in maps)
            self.images.append(entry(name, answer, picture, maps, self.planned[len(self.images)]))

    def write(self, path: Path) -> str:
        """Write the page, where there is room for one image at least; returns what is left out, in words, or ""."""
        note, embed = left_out(self.planned, self.count, self.layers), self.model.patch_embed
        if not self.planned:
            return note
        data = {
            "network": self.name, "size": embed.img_size, "grid": embed.grid_size, "prefix": prefix_names(self.model),
            "shares": self.shares, "note": f"{note[0].upper()}{note[1:]}." if note else "", "images": self.images,
        }  # fmt: skip
        block = json.dumps(data).replace("<", r"\u003c")  # so that no name can end the script, or begin a comment
        before, after = TEMPLATE.read_text(encoding="utf-8").split(">DATA<")
        path.write_text(f"{before}>{block}<{after}", encoding="utf-8")
        return note


def plan(images: int, heads: Sequence[int], tokens: int, budget: int = BUDGET) -> list[set[int]]:
    """For each image that finds room, the layers whose heads do, too: their numbers, from 0.

    ``heads`` of each layer. Of each layer the mean and the rollout are in the page, for as many images as half of the
    budget holds. What is left goes to the heads, the first images first, and of an image the last layers first.

    >>> plan(images=3, heads=[2, 2], tokens=10, budget=3_600)  # a map of 10 × 10 takes about 187
    [{0, 1}, {0, 1}]
    >>> plan(images=3, heads=[2, 2], tokens=10, budget=2_000)
    [{0, 1}]
    """
    size = 4 / 3 * tokens * (tokens + 4)  # of a map in base64: the bytes, and a float32 for each row
    always = 2 * len(heads) * size
    shown = min(images, max(int(budget / 2 // always), int(always <= budget)))
    room = budget - shown * always
    layers: list[set[int]] = [set() for _ in range(shown)]
    for chosen in layers:
        for layer in reversed(range(len(heads))):
            if heads[layer] * size <= room:
                room -= heads[layer] * size
                chosen.add(layer)
    return layers


def left_out(planned: list[set[int]], images: int, layers: int) -> str:
    """What is not in the page, in words; empty where all is.

    >>> left_out([{0, 1}, {1}], images=3, layers=2)
    'to keep the page small, it has 2 of 3 images, and the mean of heads only in 1 of 4 layers'
    """
    if not planned:
        return "there is no page to explore: the maps of one image would be too large for it"
    without = sum(layers - len(chosen) for chosen in planned)
    has = [f"{len(planned)} of {images} images"] if len(planned) < images else []
    has += [f"the mean of heads only in {without} of {layers * len(planned)} layers"] if without else []
    return f"to keep the page small, it has {', and '.join(has)}" if has else ""


def entry(
    name: str, answer: str, picture: np.ndarray, maps: Sequence[np.ndarray], with_heads: set[int]
) -> dict[str, Any]:
    """An image of the page: ``picture`` (H, W, 3) bytes, ``maps`` of each layer (heads, N, N)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    layers = []
    for layer, weights in enumerate(maps):
        rolled = rollout([a[None] for a in maps[: layer + 1]])[0]
        heads = weights if layer in with_heads else weights[:0]
        layers.append({"heads": len(heads)} | quantised(np.stack([weights.mean(0), rolled, *heads])))
    picture_url = f"data:image/png;base64,{text(file.getvalue())}"
    return {"name": name, "answer": answer, "picture": picture_url, "layers": layers}


def quantised(maps: np.ndarray) -> dict[str, str]:
    """Non-negative numbers (maps, N, N) as bytes, each row in parts of 255 of its largest number.

    >>> quantised(np.array([[[0.0, 0.5], [0.1, 0.1]]]))["weights"]  # 0, 255, 255, 255
    'AP///w=='
    """
    largest = maps.max(-1).astype("<f4")
    parts = maps / np.where(largest > 0, largest, 1)[..., None]
    weights = np.rint(255 * np.clip(parts, 0, 1)).astype(np.uint8)
    return {"largest": text(largest.tobytes()), "weights": text(weights.tobytes())}


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def prefix_names(model: Module) -> list[str]:
    """What the tokens before the patches are called.

    >>> from minivit.models import VisionTransformer
    >>> prefix_names(VisionTransformer(32, 8, embed_dim=24, depth=1, num_heads=3, reg_tokens=2))
    ['class token', 'register 1', 'register 2']
    """
    names = ["class token"] if model.cls_token is not None else []
    names += ["distillation token"] if hasattr(model, "dist_token") else []
    return names + [f"register {i + 1}" for i in range(model.num_prefix_tokens - len(names))]
