"""A network that was trained before, in a new task: its encoder from a checkpoint, and images of which few have labels.

The checkpoint is one of ``train_vit.py``, ``finetune.py`` or ``pretrain_mae.py``. Of a masked autoencoder, or of
SimMIM, the encoder is taken: a Vision Transformer.
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from train_vit import load_data

from minivit.data import Dataset
from minivit.models import MaskedAutoencoderViT, SimMIM, VisionTransformer, create_model, list_models
from minivit.models.mae import encoder_state
from minivit.models.registry import MODELS
from minivit.ops.shape import pair
from minivit.random import generator
from minivit.training import CheckpointError, load_checkpoint

OWN = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "norm_pix_loss", "weight_init")  # of the pretraining


class Pretrained(NamedTuple):
    """A Vision Transformer in a checkpoint: what builds it, its weights, and how its images were normalised."""

    name: str  # for create_model, as are the arguments
    arguments: dict[str, Any]
    state: dict[str, np.ndarray]  # may hold more than an encoder
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training: str  # it learned from "masked patches" or from "labels"
    path: Path


def read_pretrained(path: Path) -> Pretrained:
    """What a checkpoint holds. Raises CheckpointError where that is no Vision Transformer, or it does not say."""
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    if not {"model", "arguments", "mean", "std"} <= meta.keys():
        raise CheckpointError(f"{path} does not say which network it is of, and of which images")
    family, options = MODELS.get(meta["model"], (None, {}))
    masked = family in (MaskedAutoencoderViT, SimMIM)
    if not masked and family is not VisionTransformer:
        raise CheckpointError(
            f"{path} is of {meta['model']}, but what is wanted is a Vision Transformer, or a masked autoencoder"
        )
    name, arguments = meta["model"], options | meta["arguments"]
    if masked:
        arguments = {key: value for key, value in arguments.items() if key not in OWN}
        name = encoder_name(name)
    if family is MaskedAutoencoderViT:
        arguments["pos_embed"] = "sincos_mae"
    size, mean, std = pair(arguments["img_size"]), tuple(meta["mean"]), tuple(meta["std"])
    training = "masked patches" if masked else "labels"
    return Pretrained(name, arguments, checkpoint.model, size, mean, std, training, path)


def encoder_name(masked: str) -> str:
    """Under which name the encoder of a masked autoencoder, or of SimMIM, is among the Vision Transformers.

    >>> encoder_name("mae_nano_patch4_28"), encoder_name("mae_vit_base_patch16")
    ('vit_nano_patch4_28', 'vit_base_patch16_224')
    """
    size = masked.removeprefix("mae_").removeprefix("simmim_").removeprefix("vit_")
    return next(name for name in (f"vit_{size}", f"vit_{size}_224") if name in list_models(VisionTransformer))


def build(pretrained: Pretrained, **options: Any) -> VisionTransformer:
    """The network of the checkpoint with random weights, and ``options`` in place of its own arguments."""
    return create_model(pretrained.name, **pretrained.arguments | options)


def take_encoder(model: VisionTransformer, pretrained: Pretrained) -> None:
    """Copy the weights of the checkpoint into the model, in place: all but the head, which is another task's.

    The norm behind the blocks is taken where the model has it in the same place: before the tokens are pooled
    (``norm``) or after (``fc_norm``). Raises CheckpointError where others are missing, or of another shape.
    """
    own = model.state_dict()
    state = encoder_state(pretrained.state, norm="norm.weight" in own)
    state = {name: array for name, array in state.items() if name in own and not name.startswith("head.")}
    missing = [name for name in own if name not in state and not name.startswith(("head.", "norm.", "fc_norm."))]
    try:
        if missing:
            raise ValueError(f"missing {', '.join(missing)}")
        model.load_state_dict(state, strict=False)
    except ValueError as error:
        raise CheckpointError(f"{pretrained.path} does not fit {pretrained.name}: {error}") from error


def load_images(args: Namespace, pretrained: Pretrained) -> tuple[Dataset, Dataset]:
    """Training and test set of the command line, normalised as the network knows it; shapes and folders in its size."""
    if args.size is None and args.dataset.startswith(("shapes", "folder:")):
        args.size = pretrained.img_size[0]
    train_set, test_set = load_data(args)
    return as_pretrained_on(train_set, pretrained), as_pretrained_on(test_set, pretrained)


def as_pretrained_on(data: Dataset, pretrained: Pretrained) -> Dataset:
    """The images with the normalisation that the network knows. Raises ValueError for another number of channels."""
    channels, known = data.images.shape[1], len(pretrained.mean)
    if channels != known:
        raise ValueError(
            f"images of {data.name} have {channels} channels, those that {pretrained.path} was trained on had {known}"
        )
    return replace(data, mean=pretrained.mean, std=pretrained.std)


def few_labels(data: Dataset, labels: str, seed: int) -> Dataset:
    """So many images, "600", or such a share of them, "1%", as many of each class, chosen by the seed.

    Of a class that has fewer, all. More labels of the same seed are these and others. Raises ValueError where that is
    less than one of each class, or more than there are.

    >>> data = Dataset("blank", np.zeros((8, 1, 1, 1), np.uint8), np.arange(8) % 2, ["a", "b"])
    >>> sorted(few_labels(data, "50%", seed=0).labels.tolist())
    [0, 0, 1, 1]
    """
    classes = len(data.classes)
    try:
        count = round(float(labels[:-1]) / 100 * len(data)) if labels.endswith("%") else int(labels)
    except (ValueError, OverflowError):
        raise ValueError(f"--labels must be a number, such as 600, or a share, such as 1%, got {labels!r}") from None
    if not classes <= count <= len(data):
        raise ValueError(
            f"--labels must be {classes} to {len(data)}, at least one of each class, and no more than there are; "
            f"got {labels}, which is {count}"
        )
    chosen = []
    for label in range(classes):
        share = count // classes + (label < count % classes)
        of_class = np.flatnonzero(data.labels == label)
        chosen.extend(generator(seed, "labels", label).permutation(of_class)[:share])
    return data.subset(np.sort(chosen))
