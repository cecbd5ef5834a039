"""Does a Vision Transformer need to know where its patches are? Every position embedding, compared.

    python examples/positions.py                                     # a task of places alone, generated: no download
    python examples/positions.py --positions learn,rope_axial,none
    python examples/positions.py --dataset mnist --data-dir DIR      # downloaded to DIR where it is missing
    python examples/positions.py --dataset folder:PATH --size 32     # your own images, one folder a class

A small network is trained with each embedding (``minivit/nn/position``), over some seeds. The task is ``places``: in
which direction is the cross, seen from the disc? Afterwards the network is asked at a larger resolution on which it was
not trained. Images of ``places`` are drawn larger, with figures of the same size in pixels, some of them further apart
than any it has seen; test images of other data sets are scaled up (bicubic). What the book says of positions is held
against the numbers. (``sincos_1d``, ``rel_shaw`` and ``rel_t5`` number the patches row after row: in a wider image the
patch below has another number.)

It leaves a folder ``runs/positions-<data set>/``: the figures of each run, and the pictures ``accuracy.png``,
``similarity.png`` (how alike are two places?), ``bias.png`` (what attention adds for a place) and ``sinusoids.png``.
Ctrl-C ends it, and the same command goes on with the runs that are missing. The last line printed is a JSON object.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from claims import Claim, compare, plus_minus, tell
from running import crop_and_flip, recipe_of, sentences, short_name
from sweep import GOES_ON, Figures, Job, by_variant, spread, sweep
from train_vit import RECIPES as TRAINING
from train_vit import Recipe, load_data

from minivit.data import Dataset, Loader
from minivit.data.places import places
from minivit.models import VisionTransformer
from minivit.models.vit import POSITIONS
from minivit.nn.position import ABSOLUTE, RELATIVE, absolute_table, sincos_1d
from minivit.nn.position.resize import resize_grid
from minivit.objective import Classification
from minivit.optim import AdamW, warmup_cosine, weight_decay_groups
from minivit.random import generator
from minivit.training import choose_layout, predict, train_step

RECIPES = TRAINING | {"places": Recipe("", epochs=5, lr=4e-3, batch_size=50)}
# The head reads the mean of all patches. A class token would have no place of its own in most of these embeddings.
NETWORK = {
    "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "global_pool": "avg", "class_token": False,
    "weight_init": "book",
}  # fmt: skip
FAMILIES = {"absolute": ("learn", *ABSOLUTE), "relative": tuple(RELATIVE)}
Table = dict[str, dict[str, np.ndarray]]  # {position embedding: {figure: one value a seed}}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--dataset", default="places", help="places, shapes, mnist, fashion_mnist, cifar10, cifar100 or folder:PATH")
    add("--data-dir", default="data", help="where the files of public data sets are, or are downloaded to")
    add("--positions", default=",".join(POSITIONS), help="some of %(default)s")
    add("--size", type=int, help="pixels a side, for places (default 24), shapes and folders (default 32)")
    add("--larger", type=int, help="pixels a side at the resolution not trained on (default: half as many again)")
    add("--patch-size", type=int, default=4, help="pixels a side of a patch")
    add("--train-images", type=int, default=6_000, help="use at most so many training images")
    add("--test-images", type=int, default=2_000, help="use at most so many test images")
    add("--epochs", type=int, help="passes over the training images (default: by data set)")
    add("--seeds", type=int, default=3, help="how many trainings of each kind")
    add("--run-dir", type=Path, help="folder of the figures (default: runs/positions-<data set>)")
    args = parser.parse_args(arguments)
    args.positions = args.positions.split(",")
    if unknown := [name for name in args.positions if name not in POSITIONS]:
        raise ValueError(f"--positions must be some of {','.join(POSITIONS)}, got {','.join(unknown)}")
    for name in ("seeds", "train_images", "test_images"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    args.epochs = recipe_of(args.dataset, RECIPES).epochs if args.epochs is None else args.epochs
    if args.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {args.epochs}")
    args.run_dir = args.run_dir or Path("runs") / f"positions-{short_name(args.dataset)}"
    return args


def main(arguments: list[str] | None = None) -> dict:
    started, args = time.monotonic(), parse(arguments)
    names = ("dataset", "data_dir", "size", "larger", "patch_size", "train_images", "test_images", "epochs")
    common = {name: getattr(args, name) for name in names}
    jobs = [common | {"position": name, "seed": seed} for seed in range(args.seeds) for name in args.positions]
    train_set, test_set, larger_set = load_sets(jobs[0])  # a wrong argument, or a download, comes before the runs
    for job in jobs[: len(args.positions)]:
        make_model(job, train_set).set_input_size(larger_set.images.shape[2:])
    print(f"{train_set!r}, {len(test_set)} to test\n{args.run_dir}")
    table = by_variant(sweep(run, jobs, args.run_dir / "figures", "training"), "position")

    chance = 1 / len(train_set.classes)
    pixels = [data.images.shape[-1] for data in (train_set, larger_set)]
    verdicts = claims(table, chance)
    print(f"\n{as_text(table, *pixels)}\n\n{tell(verdicts, args.seeds)}")
    grid = tuple(side // args.patch_size for side in train_set.images.shape[2:])
    draw(table, grid, chance, pixels, args.run_dir)
    means = {  # the first of each pair is the mean, the second the standard deviation of the seeds
        f"{kind}{measure.removeprefix('accuracy')}_{name}": value
        for name, found in table.items()
        for measure in ("accuracy", "accuracy_larger", "accuracy_larger_near")
        if measure in found
        for kind, value in zip(("accuracy", "spread"), spread(found[measure].tolist()))
    }
    return {
        "example": "positions", "dataset": args.dataset.partition(":")[0], "train_images": len(train_set),
        "epochs": args.epochs, "seeds": args.seeds, "pixels": pixels[0], "pixels_larger": pixels[1], **means,
        **{f"held_{claim.key}": claim.held for claim in verdicts},
        "seconds": round(time.monotonic() - started, 1), "run_dir": str(args.run_dir),
    }  # fmt: skip


# --- one run -----------------------------------------------------------------------------------------------------


def run(job: Job) -> Figures:
    """Train with one position embedding, from one seed; how often is it right, at both resolutions?"""
    train_set, test_set, larger_set = load_sets(job)
    model = make_model(job, train_set)
    start = model.pos_embed.numpy().copy() if job["position"] == "learn" else None
    train(model, train_set, job)
    figures: Figures = {"accuracy": float(correct(model, test_set).mean())}
    if start is not None:
        added = (model.pos_embed.numpy() - start)[0]
        figures["table"] = model.pos_embed.numpy()[0].tolist()
        figures["added"] = (added - added.mean(0)).tolist()  # what is common to all places tells none from another
    if job["position"] in ("rel_bias", "rel_t5"):
        figures["bias"] = central_bias(model).tolist()
    model.set_input_size(larger_set.images.shape[2:])
    right = correct(model, larger_set)
    figures["accuracy_larger"] = float(right.mean())
    if job["dataset"] == "places":
        near = larger_set.extra["distance"] <= train_set.extra["distance"].max()
        figures["accuracy_larger_near"] = float(right[near].mean())
    return figures


def load_sets(job: Job) -> tuple[Dataset, Dataset, Dataset]:
    """Training set, test set, and test set at the larger resolution. Images of ``places`` are other ones in each seed.

    Raises ValueError where patches do not divide the images.
    """
    patch, test_images = job["patch_size"], job["test_images"]
    if job["dataset"] == "places":
        size = job["size"] or 24
        train_set = places(job["train_images"], job["seed"], size)
        test_set = places(test_images, job["seed"], size, split="test").normalised_like(train_set)
    else:
        train_set, test_set = load_data(argparse.Namespace(**job | {"seed": 0}))
        chosen = generator(0, "test images").permutation(len(test_set))[:test_images]
        test_set = test_set.subset(np.sort(chosen))
    height, width = train_set.images.shape[2:]
    if height % patch or width % patch:
        raise ValueError(f"--patch-size must divide the images of {height} × {width} pixels, got {patch}")
    larger = job["larger"] or patch * (height // patch + height // patch // 2)
    if larger % patch:
        raise ValueError(f"--larger must be a multiple of the patch size, {patch} pixels, got {larger}")
    if job["dataset"] == "places":
        return train_set, test_set, places(test_images, job["seed"], larger, "test").normalised_like(train_set)
    return train_set, test_set, scaled(test_set, larger)


def scaled(data: Dataset, size: int) -> Dataset:
    """The images at ``size`` × ``size`` pixels, bicubic: what is true of a table of positions is so of a picture."""
    n, channels, *_ = data.images.shape
    layers = data.images.reshape(n * channels, *data.images.shape[2:]).transpose(1, 2, 0)  # (H, W, n C)
    images = np.empty((size, size, n * channels), np.uint8)
    for start in range(0, n * channels, 1000):
        piece = slice(start, start + 1000)
        pixels = resize_grid(layers[:, :, piece].astype(np.float32), (size, size))
        images[:, :, piece] = np.clip(pixels + 0.5, 0, 255)
    images = images.transpose(2, 0, 1).reshape(n, channels, size, size)
    return Dataset(data.name, images, data.labels, data.classes, data.mean, data.std)


def make_model(job: Job, data: Dataset) -> VisionTransformer:
    return VisionTransformer(
        data.images.shape[2:], job["patch_size"], data.images.shape[1], len(data.classes),
        pos_embed=job["position"], seed=job["seed"], **NETWORK,
    )  # fmt: skip


def train(model: VisionTransformer, data: Dataset, job: Job) -> None:
    recipe = recipe_of(job["dataset"], RECIPES)
    loader = Loader(data, recipe.batch_size, job["seed"], augment=crop_and_flip(recipe))
    optimizer = AdamW(weight_decay_groups(model, 0.05), lr=recipe.lr)
    layout = choose_layout(model, data.normalise(data.images[:1]), recipe.batch_size, workers=1)
    steps = job["epochs"] * len(loader)
    batches = (batch for epoch in range(job["epochs"]) for batch in loader.epoch(epoch))
    for step, batch in enumerate(batches):
        optimizer.lr = warmup_cosine(step, steps, steps // 10, recipe.lr)
        train_step(model, Classification(), batch, optimizer, job["seed"], step, layout, max_norm=1.0)


def correct(model: VisionTransformer, data: Dataset) -> np.ndarray:
    """For each image, whether its class is found: (n,) bool."""
    return predict(model, data.normalise(data.images)).argmax(1) == data.labels


def central_bias(model: VisionTransformer) -> np.ndarray:
    """What each head of each layer adds for the patch in the middle to the others: (layers, heads, rows, columns)."""
    rows, columns = model.patch_embed.grid_size
    middle = rows // 2 * columns + columns // 2
    return np.stack([b.attn.rel_pos.bias().numpy()[:, middle].reshape(-1, rows, columns) for b in model.blocks])


# --- what came out -----------------------------------------------------------------------------------------------


def similarity(table: np.ndarray) -> np.ndarray:
    """The cosine of each row (N, D) with each row: (N, N).

    >>> similarity(np.array([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]])).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    return unit @ unit.T


def nearness(table: np.ndarray, grid: tuple[int, int]) -> tuple[float, float]:
    """Does the cosine of two rows of a table say how near their places are? Its correlation with −distance, over all
    pairs of places: of their distance in the grid, and of that in the sequence of patches, row after row.

    >>> y, x = np.indices((3, 3)).reshape(2, -1)
    >>> table = np.stack([np.cos(x / 2), np.sin(x / 2), np.cos(y / 2), np.sin(y / 2)], axis=1)
    >>> [round(r, 2) for r in nearness(table, (3, 3))]
    [0.99, 0.59]
    """
    at = np.indices(grid).reshape(2, -1)
    first, second = np.triu_indices(at.shape[1], 1)
    in_grid = np.linalg.norm(at[:, first] - at[:, second], axis=0)
    alike = similarity(table)[first, second]
    return tuple(float(np.corrcoef(alike, -distance)[0, 1]) for distance in (in_grid, second - first))


def claims(table: Table, chance: float) -> list[Claim]:
    """What the book says of positions, held against the figures of all seeds; only what these can decide."""
    found = []
    with_positions = {name: figures["accuracy"] for name, figures in table.items() if name != "none"}
    if "none" in table and with_positions:
        plain = table["none"]["accuracy"]
        losers = [name for name, accuracy in with_positions.items() if compare(accuracy, plain) < 1]
        best = max(with_positions, key=lambda name: with_positions[name].mean())
        numbers = f"{percent(plain)} without, {percent(with_positions[best])} with {best}; chance is {chance:.1%}"
        numbers += f"; no better than none: {', '.join(losers)}" if losers else ""
        says = "Positions matter: any of them is better than none."
        found.append(Claim("positions_matter", says, not losers, numbers))
    if "added" in table.get("learn", {}):
        tables = table["learn"]["added"]  # (seeds, N, D)
        side = round(tables.shape[1] ** 0.5)
        in_grid, in_line = np.transpose([nearness(t, (side, side)) for t in tables])
        says = "A table that is learned, of places in a row, finds out by itself that they lie in a grid."
        held = compare(in_grid, in_line) == 1 and bool(in_grid.mean() > 0.5)
        numbers = "in what training adds to it, the cosine of two places has a correlation of "
        numbers += f"{plus_minus(in_grid, digits=2)} with their nearness in the grid (held: above 0.5), and of "
        numbers += f"{plus_minus(in_line, digits=2)} with that in the row"
        found.append(Claim("learned_grid", says, held, numbers))
    kept = {family: share_kept(table, names, chance) for family, names in FAMILIES.items()}
    if all(len(shares) for shares in kept.values()):
        says = "At a resolution that was not trained on, absolute tables lose more than relative positions."
        numbers = ", ".join(f"{family} ones keep {percent(shares)}" for family, shares in kept.items())
        numbers += " of their accuracy above chance (of those that came half-way from chance to 100 %)"
        found.append(Claim("relative_keeps", says, compare(kept["relative"], kept["absolute"]) == 1, numbers))
    return found


def share_kept(table: Table, names: tuple[str, ...], chance: float) -> np.ndarray:
    """In each seed: of the accuracy above chance, the share that is left at the larger resolution; mean over the
    embeddings of a family, apart from those that have learned too little to lose it. Empty where that leaves none.
    """
    learned = [table[name] for name in names if name in table and table[name]["accuracy"].mean() > (1 + chance) / 2]
    shares = [(found["accuracy_larger"] - chance) / (found["accuracy"] - chance) for found in learned]
    return np.mean(shares, axis=0) if shares else np.array([])


def percent(values: np.ndarray) -> str:
    return f"{plus_minus(values, 100)} %"


def as_text(table: Table, pixels: int, larger: int) -> str:
    """Mean ± standard deviation of the accuracies."""
    columns = {"accuracy": f"at {pixels} px", "accuracy_larger": f"at {larger} px"}
    if any("accuracy_larger_near" in found for found in table.values()):
        columns["accuracy_larger_near"] = "distances as trained"
    lines = [f"{'test accuracy, %':18}" + "".join(f"{title:>24}" for title in columns.values())]
    for name, found in table.items():
        lines.append(f"{name:18}" + "".join(f"{plus_minus(found[measure], 100):>24}" for measure in columns))
    return "\n".join(lines)


def draw(table: Table, grid: tuple[int, int], chance: float, pixels: list[int], run_dir: Path) -> None:
    try:
        import position_pictures as pictures
    except ImportError:
        print("\nno pictures were drawn: they need matplotlib, pip install 'minivit[examples]'")
        return
    maps = {}
    for title, rows in tables_of(table, grid).items():
        in_grid, in_line = (round(correlation, 2) + 0.0 for correlation in nearness(rows, grid))  # + 0.0: no "-0.00"
        title += f"\ncorrelation with nearness:\n{in_grid:.2f} in the grid, {in_line:.2f} in the row"
        maps[title] = similarity(rows).reshape(*grid, *grid)
    pictures.draw_accuracy(table, FAMILIES, pixels, chance, run_dir / "accuracy.png")
    pictures.draw_similarity(maps, run_dir / "similarity.png")
    pictures.draw_sinusoids(sincos_1d(embed_dim=128, tokens=100), run_dir / "sinusoids.png")
    drawn = ["accuracy", "similarity", "sinusoids"]
    if biases := {name: found["bias"][0] for name, found in table.items() if "bias" in found}:
        pictures.draw_bias(biases, run_dir / "bias.png")
        drawn.append("bias")
    print(f"\npictures in {run_dir}: {', '.join(drawn)}")


def tables_of(table: Table, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """By title, the tables whose similarity is shown: that learned from the first seed, and two fixed ones."""
    shown = {}
    if "learn" in table:
        shown["learn"] = table["learn"]["table"][0]
        shown["learn: what training added"] = table["learn"]["added"][0]
    for name in ("sincos_1d", "sincos_mae"):
        shown[name] = absolute_table(name, NETWORK["embed_dim"], grid)[0]
    return shown


if __name__ == "__main__":
    with sentences("positions", GOES_ON):
        print(json.dumps(main()))
