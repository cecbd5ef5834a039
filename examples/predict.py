"""Ask a trained network what it sees in your own image files, and where it looked.

    python examples/predict.py runs/shapes-vit_nano_patch8_32-0/best.npz photo.jpg drawing.png

Each image is scaled and cut to the network's size. It prints the likeliest classes, and draws
``predictions_on_files.png`` beside the checkpoint (``--out`` for another place): the image and the attention of the
class token in the last block. The last line printed is a JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from minivit import Tensor, ops
from minivit.analysis import class_attention
from minivit.backend import to_device
from minivit.data import Dataset
from minivit.data.folder import read_image
from minivit.nn import on_device_of
from minivit.training import CheckpointError, choose_layout, load_model, predict


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="best.npz or last.npz of a run")
    parser.add_argument("images", type=Path, nargs="+", help="image files of any size and format")
    parser.add_argument("--top", type=int, default=3, help="how many classes to print for each image")
    parser.add_argument("--invert", action="store_true", help="turn dark on light into light on dark, as in MNIST")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:NUMBER")
    parser.add_argument("--out", type=Path, help="the picture (default: beside the checkpoint)")
    args = parser.parse_args(arguments)
    out = args.out or args.checkpoint.with_name("predictions_on_files.png")

    model, meta = load_model(args.checkpoint)
    embed = model.to(args.device).patch_embed
    pixels = np.stack([read_pixels(path, embed.img_size, embed.in_chans, args.invert) for path in args.images])
    unknown = np.zeros(len(pixels), int)
    data = Dataset("files", pixels, unknown, meta["classes"], tuple(meta["mean"]), tuple(meta["std"]))
    inputs = to_device(data.normalise(pixels), args.device)
    with on_device_of(model), choose_layout(model, inputs, len(inputs)) as layout:
        probabilities = ops.softmax(Tensor(predict(model, inputs, layout))).numpy()

    answers = []
    for path, p in zip(args.images, probabilities):
        best = np.argsort(-p)
        print(f"{path}: " + ", ".join(f"{data.classes[k]} {p[k]:.1%}" for k in best[: args.top]))
        answers.append({"file": path.name, "class": data.classes[best[0]], "confidence": round(float(p[best[0]]), 4)})
    titles = [f"{answer['class']} ({answer['confidence']:.0%})" for answer in answers]
    try:
        import figures
    except ImportError:
        print("no picture was drawn: it needs matplotlib, pip install 'minivit[examples]'")
    else:
        figures.draw_attention(pixels, class_attention(model, inputs), titles, out)
        print(f"where it looked: {out}")
    return {"example": "predict", "checkpoint": str(args.checkpoint), "answers": answers}


def read_pixels(path: Path, img_size: tuple[int, int], in_chans: int, invert: bool) -> np.ndarray:
    """An image file as bytes (in_chans, H, W): scaled, its centre cut out, grey where the network sees one channel."""
    if img_size[0] != img_size[1] or in_chans not in (1, 3):
        raise ValueError(f"image files become square with 1 or 3 channels; the network takes {in_chans} of {img_size}")
    try:
        image = read_image(path, img_size[0])
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if in_chans == 1:
        image = (image * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdims=True)  # luma, ITU-R BT.601
    image = np.rint(image).astype(np.uint8)
    return 255 - image if invert else image


if __name__ == "__main__":
    try:
        print(json.dumps(main()))
    except (CheckpointError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"predict: {error}")
