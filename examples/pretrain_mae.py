"""Pretrain a masked autoencoder: a Vision Transformer that learns from images without labels.

    python examples/pretrain_mae.py --dataset mnist --data-dir DIR     # downloaded to DIR where it is missing
    python examples/pretrain_mae.py --dataset folder:PATH --size 32    # your own images
    python examples/pretrain_mae.py --model simmim_nano_patch4_28 ...  # the other way to learn from masked patches
    mpiexec -n 2 python examples/pretrain_mae.py --dataset mnist       # the same training, by two processes

It leaves a folder ``runs/<name>/``: ``log.jsonl``, ``last.npz`` and ``best.npz`` (each with encoder *and* decoder, and
they say so), and the pictures ``curves.png``, ``reconstructions.png`` (original, what the network saw, what it painted)
and ``ratios.png`` (one image, with more and more of it hidden). Ctrl-C saves and ends; ``--resume`` goes on. The last
line printed is a JSON object. ``finetune.py`` and ``probe.py`` take ``last.npz`` from there.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from running import data_options, machine_options, on_all_ranks, run_options, sentences, settle, short_name
from train_vit import first_of_each_class, load_data

from minivit.analysis.reconstruction import reconstruct
from minivit.autograd import no_grad
from minivit.data import Dataset, Loader
from minivit.data.augment import RandomHorizontalFlip, RandomResizedCrop
from minivit.models import MaskedAutoencoderViT, SimMIM, create_model, list_models
from minivit.models.masking import KINDS
from minivit.nn import on_device_of
from minivit.objective import Reconstruction
from minivit.optim import AdamW, weight_decay_groups
from minivit.random import sampling
from minivit.training import Ranks, TrainConfig, choose_layout, fit, read_log

NAMES = list_models(MaskedAutoencoderViT) + list_models(SimMIM)
Masked = MaskedAutoencoderViT | SimMIM
RATIOS = (0.5, 0.75, 0.9)


class Recipe(NamedTuple):
    """What trains well on a data set; every part can be changed on the command line.

    ``blr`` is the learning rate for 256 images a step. Networks as small as these bear one far higher than the paper's
    1.5e-4. ``crop``: the smallest share of an image that is cut out and enlarged.
    """

    model: str
    epochs: int
    blr: float
    batch_size: int = 128
    crop: float = 0.2
    flip: bool = True


RECIPES = {
    "mnist": Recipe("mae_nano_patch4_28", 10, 2e-3, crop=0.5, flip=False),
    "fashion_mnist": Recipe("mae_nano_patch4_28", 10, 2e-3, crop=0.5),
    "folder": Recipe("mae_nano_patch4_32", 10, 2e-3),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    data_options(parser)
    add("--model", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)} (default: by data set)")
    add("--mask-ratio", type=float, default=0.75, help="share of the patches that the network does not see")
    add("--mask-kind", default="random", choices=KINDS, help="patches here and there, a square, or a grid")
    add("--norm-pix", action="store_true", help="predict patches with their own mean and deviation taken out")
    add("--epochs", type=int, help="passes over the training images")
    add("--batch-size", type=int, help="images a step")
    add("--blr", type=float, help="peak learning rate for 256 images a step: the rate is blr × batch size / 256")
    add("--weight-decay", type=float, default=0.05)
    add("--warmup", type=float, default=0.05, help="share of the steps in which the learning rate rises")
    add("--clip", type=float, help="largest norm of the gradient (default: any)")
    add("--crop", type=float, help="cut out and enlarge at least this share of each image; 1 leaves them whole")
    add("--flip", action=argparse.BooleanOptionalAction, default=None, help="mirror half of the training images")
    machine_options(parser)
    run_options(parser, "runs/<data set>-<model>-<seed>")
    args = parser.parse_args(arguments)
    settle(args, RECIPES)
    args.run_dir = args.run_dir or Path("runs") / f"{short_name(args.dataset)}-{args.model}-{args.seed}"
    return args


def pretrain(args: argparse.Namespace, ranks: Ranks) -> dict:
    if args.device == "cuda" and ranks.size > 1:
        args.device = f"cuda:{ranks.place}"  # one for each rank of this machine
    create_model(args.model, weight_init="skip").to(args.device)  # no GPU: say so before the download
    train_set, test_set = load_data(args)
    channels, *size = train_set.images.shape[1:]
    options = {"img_size": size, "in_chans": channels, "seed": args.seed}
    if args.norm_pix:
        options["norm_pix_loss"] = True
    model = create_model(args.model, **options).to(args.device)
    model.set_grad_checkpointing(args.recompute)
    image, device = train_set.normalise(train_set.images[:1]), model.device
    layout = choose_layout(model, image, args.batch_size, args.workers, args.micro_batch, ranks)
    print(f"{train_set!r}\n{args.model}: {model.num_parameters():,} parameters, on {device}\n{layout}\n{args.run_dir}")

    lr = args.blr * args.batch_size / 256
    with on_device_of(model):
        optimizer = AdamW(weight_decay_groups(model, args.weight_decay), lr=lr, betas=(0.9, 0.95))
    result = fit(
        model,
        optimizer,
        Loader(train_set, args.batch_size, args.seed, augment=augmentations(args.crop, args.flip)),
        Loader(test_set, 250, shuffle=False),
        TrainConfig(
            args.run_dir, args.epochs, lr, warmup_epochs=args.warmup * args.epochs, clip=args.clip, seed=args.seed,
            save_seconds=60, precision=args.precision, resume_hint="the same command with --resume",
        ),
        Reconstruction(args.mask_ratio, args.mask_kind),
        resume=args.resume,
        overwrite=args.overwrite,
        meta={"model": args.model, "arguments": options, "holds": "encoder and decoder"},
        layout=layout,
    )  # fmt: skip
    if ranks.rank == 0:
        draw(model.to("cpu"), test_set, args.run_dir, args.mask_ratio, args.mask_kind)
    return {
        "example": "pretrain_mae", "dataset": args.dataset.partition(":")[0], "model": args.model, "seed": args.seed,
        "device": device, "epochs": args.epochs, "train_images": len(train_set), "mask_ratio": args.mask_ratio,
        "mask_kind": args.mask_kind,
        "norm_pix": args.norm_pix, "test_loss": result.test_loss, "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1), "ranks": ranks.size, "workers": layout.workers,
        "micro_batch": layout.micro_batch or args.batch_size, "run_dir": str(args.run_dir),
    }  # fmt: skip


def augmentations(crop: float, flip: bool) -> list:
    """A random part of each image, enlarged, and mirrored half of the time: all that the paper uses."""
    crops = [RandomResizedCrop(scale=(crop, 1.0), interpolation="bicubic")] if crop < 1 else []
    return crops + ([RandomHorizontalFlip()] if flip else [])


# --- pictures ------------------------------------------------------------------------------------------------------


def draw(model: Masked, test_set: Dataset, run_dir: Path, mask_ratio: float, mask_kind: str) -> None:
    """The three pictures of a run. The images are the first of the test set, one or two of each class."""
    try:
        import figures
    except ImportError:
        print("no pictures were drawn: they need matplotlib, pip install 'minivit[examples]'")
        return
    log = [record for record in read_log(run_dir / "log.jsonl") if record["event"] == "epoch"]
    figures.draw_loss(log, run_dir / "curves.png", "mean squared error of masked patches")
    shown = first_of_each_class(test_set.labels.tolist(), 8)
    figures.draw_image_table(painted(model, test_set, shown, mask_ratio, mask_kind), run_dir / "reconstructions.png")
    columns = {"original": test_set.images[shown[:6]]}
    for ratio in RATIOS:
        pictures = painted(model, test_set, shown[:6], ratio, mask_kind)
        columns[f"{100 * ratio:.0f} % hidden"] = pictures["seen"]
        columns[f"painted\nfrom {100 - 100 * ratio:.0f} %"] = list(pictures.values())[-1]
    figures.draw_image_table(columns, run_dir / "ratios.png")
    print(f"pictures in {run_dir}: curves, reconstructions, ratios")


def painted(
    model: Masked, data: Dataset, indices: list[int], mask_ratio: float, mask_kind: str = "random"
) -> dict[str, np.ndarray]:
    """Columns of images (n, C, H, W), by title: what was there, what the network saw, and what it painted."""
    images = data.normalise(data.images[indices])
    with no_grad(), sampling(0, 0, np.array(indices)):
        _, pred, mask = model.eval()(images, mask_ratio, mask_kind=mask_kind)
    grey = float(np.mean([(0.5 - mean) / std for mean, std in zip(data.mean, data.std)]))

    def pictures(**options) -> list[np.ndarray]:
        return [denormalise(data, array) for array in reconstruct(model, images, pred, mask, fill=grey, **options)]

    seen, whole, pasted = pictures()
    columns = {"original": data.images[indices], "seen": seen}
    if not model.norm_pix_loss:
        return columns | {"painted": whole, "painted\nwhere hidden": pasted}
    raw = pictures(denormalise=False)[1]
    return columns | {
        "painted, raw:\nno mean,\nno contrast": raw,
        "painted, with\neach patch's true\nmean and contrast": whole,
        "the same\nwhere hidden": pasted,
    }


def denormalise(data: Dataset, images: np.ndarray) -> np.ndarray:
    """Network input (n, C, H, W) back to colours in [0, 1]."""
    mean, std = (np.array(values, images.dtype)[:, None, None] for values in (data.mean, data.std))
    return images * std + mean


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    on_all_ranks("pretrain_mae", lambda ranks: pretrain(args, ranks))


if __name__ == "__main__":
    with sentences("pretrain_mae"):
        main()
