"""A trained network, and image files of your own: what ``predict.py`` and ``explain.py`` begin with."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minivit import Tensor, ops
from minivit.backend import Array, to_device
from minivit.data import Dataset
from minivit.data.folder import read_image
from minivit.nn import Linear, Module, on_device_of
from minivit.ops.shape import Size, pair
from minivit.training import CheckpointError, choose_layout, load_model, predict

LUMA = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue are, ITU-R BT.601


def file_options(parser: ArgumentParser) -> None:
    """Options of the command line: which network, and which files."""
    add = parser.add_argument
    add("checkpoint", type=Path, help="best.npz or last.npz of a run")
    add("images", type=Path, nargs="+", help="image files of any size and format")
    add("--invert", action="store_true", help="turn dark on light into light on dark, as in MNIST")
    add("--device", default="cpu", help="cpu, cuda or cuda:NUMBER")


class Asked(NamedTuple):
    """A network, and the images that it is asked about."""

    model: Module
    name: str  # of the model, for create_model
    paths: list[Path]
    data: Dataset  # the images as bytes, with the classes and the normalisation that the network knows
    inputs: Array  # the images as the network takes them, where it lies


def load(args: Namespace) -> Asked:
    """What the options of ``file_options`` name. Raises CheckpointError and ValueError for what cannot be read."""
    model, meta = load_model(args.checkpoint)
    if not {"classes", "mean", "std"} <= meta.keys():
        raise CheckpointError(f"{args.checkpoint} does not say which images it is of")
    pixels = np.stack([read_pixels(path, *taken_by(model), args.invert) for path in args.images])
    unknown = np.zeros(len(pixels), int)
    data = Dataset("files", pixels, unknown, meta["classes"], tuple(meta["mean"]), tuple(meta["std"]))
    inputs = to_device(data.normalise(pixels), model.to(args.device).device)
    return Asked(model, meta["model"], args.images, data, inputs)


def taken_by(model: Module) -> tuple[Size, int]:
    """The size of the images that a network takes, and their channels."""
    if hasattr(model, "patch_embed"):
        return model.patch_embed.img_size, model.patch_embed.in_chans
    return pair(model.img_size), model.conv1.weight.shape[1]  # a ResNet


def read_pixels(path: Path, img_size: Size, in_chans: int, invert: bool) -> np.ndarray:
    """An image file as bytes (in_chans, H, W): scaled, its centre cut out, grey where the network sees one channel."""
    if in_chans not in (1, 3):
        raise ValueError(f"image files have 1 or 3 channels; the network takes {in_chans}")
    try:
        image = read_image(path, max(img_size))
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    top, left = ((max(img_size) - length) // 2 for length in img_size)
    image = image[:, top : top + img_size[0], left : left + img_size[1]]
    if in_chans == 1:
        image = (image * LUMA[:, None, None]).sum(0, keepdims=True)
    image = np.rint(image).astype(np.uint8)
    return 255 - image if invert else image


def tells_classes(model: Module) -> bool:
    """Does the network end in logits? A masked autoencoder does not."""
    return any(isinstance(getattr(model, name, None), Linear) for name in ("head", "fc"))


def answers(asked: Asked, top: int = 3) -> list[dict[str, Any]]:
    """What the network says of each image, and how sure it is; the ``top`` likeliest classes are printed."""
    if not tells_classes(asked.model):
        raise ValueError(f"{asked.name} tells no classes: finetune.py makes a network of it that does")
    with on_device_of(asked.model), choose_layout(asked.model, asked.inputs, len(asked.inputs)) as layout:
        probabilities = ops.softmax(Tensor(predict(asked.model, asked.inputs, layout))).numpy()
    classes, found = asked.data.classes, []
    for path, p in zip(asked.paths, probabilities):
        best = np.argsort(-p)
        print(f"{path}: " + ", ".join(f"{classes[k]} {p[k]:.1%}" for k in best[:top]))
        found.append({"file": path.name, "class": classes[best[0]], "confidence": round(float(p[best[0]]), 4)})
    return found
