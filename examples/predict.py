"""Ask a trained network what it sees in your own image files, and where it looked.

    python examples/predict.py runs/shapes-vit_nano_patch8_32-0/best.npz photo.jpg drawing.png

Each image is scaled and cut to the network's size. It prints the likeliest classes, and draws
``predictions_on_files.png`` beside the checkpoint (``--out`` for another place): the image and the attention of the
class token in the last block. More of what a network looks at: ``explain.py``. The last line printed is a JSON object.
"""

import argparse
import json
from pathlib import Path

from image_files import Asked, answers, file_options, load
from running import sentences

from minivit.analysis import class_attention


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    file_options(parser)
    parser.add_argument("--top", type=int, default=3, help="how many classes to print for each image")
    parser.add_argument("--out", type=Path, help="the picture (default: beside the checkpoint)")
    args = parser.parse_args(arguments)
    asked = load(args)
    found = answers(asked, args.top)
    draw(asked, found, args.out or args.checkpoint.with_name("predictions_on_files.png"))
    return {"example": "predict", "checkpoint": str(args.checkpoint), "answers": found}


def draw(asked: Asked, found: list[dict], out: Path) -> None:
    if not hasattr(asked.model, "patch_embed"):
        print(f"no picture was drawn: {asked.name} has no attention")
        return
    try:
        import figures
    except ImportError:
        print("no picture was drawn: it needs matplotlib, pip install 'minivit[examples]'")
        return
    titles = [f"{answer['class']} ({answer['confidence']:.0%})" for answer in found]
    figures.draw_attention(asked.data.images, class_attention(asked.model, asked.inputs), titles, out)
    print(f"where it looked: {out}")


if __name__ == "__main__":
    with sentences("predict"):
        print(json.dumps(main()))
