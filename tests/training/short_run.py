"""Twenty steps of a small Vision Transformer with everything random switched on, for any layout.

mpiexec -n 2 python -m tests.training.short_run FILE    each rank its share; rank 0 writes the parameters to FILE;
                                                        with "overlap" after it, gradients are summed on the way
"""

import sys

import numpy as np

from minivit.data import Dataset, Loader
from minivit.data.augment import RandomCrop, RandomHorizontalFlip
from minivit.models import VisionTransformer
from minivit.objective import Classification
from minivit.optim import SGD
from minivit.random import generator
from minivit.training import Layout, all_reduce, connect, train_step

CUTS = [(1, 4), (2, 4), (2, None), (3, 2), (1, 1)]  # workers, micro_batch


def dataset() -> Dataset:
    rng = generator(0, "short run")
    images = rng.integers(0, 256, (23, 1, 8, 8)).astype(np.uint8)
    return Dataset("noise", images, rng.integers(0, 3, 23), ["a", "b", "c"])


def train(layout: Layout, seed: int, steps: int = 20) -> dict[str, np.ndarray]:
    """The parameters after ``steps`` steps on batches of 10, 10 and 3 images."""
    options = {"drop_path_rate": 0.3, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1, "attn_drop_rate": 0.1}
    model = VisionTransformer(8, 4, 1, 3, embed_dim=16, depth=2, num_heads=2, weight_init="book", **options)
    optimizer = SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    loader = Loader(dataset(), 10, seed, augment=[RandomCrop(1), RandomHorizontalFlip()], prefetch=0)
    loader = loader.shard(layout.ranks.rank, layout.ranks.size)
    with layout:
        for step in range(steps):
            batch = loader.batch(*divmod(step, len(loader)))
            train_step(model, Classification(), batch, optimizer, seed, step, layout, max_norm=1.0)
    return model.state_dict()


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """The largest difference of any parameter's entries, relative to the largest entry."""
    return max(float(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max()) for name in b)


if __name__ == "__main__":
    ranks = connect()
    all_reduce.PART_BYTES = 512
    parameters = train(Layout(ranks=ranks, overlap="overlap" in sys.argv), seed=0)
    if ranks.rank == 0:
        np.savez(sys.argv[1], **parameters)
