"""Some steps of a network with BatchNorm, for any layout.

mpiexec -n 2 python -m tests.training.whole_batch_run FILE WORKERS    rank 0 writes parameters and buffers to FILE
"""

import sys

import numpy as np

from minivit import Tensor, ops
from minivit.data import Loader
from minivit.nn import BatchNorm1d, BatchNorm2d, Linear, Module, checkpoint
from minivit.objective import Classification
from minivit.optim import SGD
from minivit.training import Layout, connect, train_step
from tests.training.objectives import draw_weights
from tests.training.short_run import dataset


class Encoder(Module):
    """Images of 8 × 8 → 8 features, normalised on the way as maps of 3 channels."""

    def __init__(self):
        self.fc1 = Linear(64, 48)
        self.bn1 = BatchNorm2d(3)
        self.fc2 = Linear(48, 8)
        self.bn2 = BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.fc1(x).reshape(len(x), 3, 4, 4))
        return self.bn2(self.fc2(ops.relu(x).reshape(len(x), 48)))


class Normalised(Module):
    """``middle`` stands between two layers, for tests to meddle with."""

    def __init__(self, recompute: bool = False, middle: Module | None = None):
        self.encoder = Encoder()
        self.middle = middle
        self.norm = BatchNorm1d(8, affine=False)
        self.head = Linear(8, 3)
        self.recompute = recompute
        draw_weights(self.encoder, "encoder")
        draw_weights(self.head, "head")
        for buffer in self.encoder.buffers():
            buffer.data[...] = 1.0

    def forward(self, images) -> Tensor:
        x = Tensor(images).reshape(len(images), 64)
        x = checkpoint(self.encoder, x) if self.recompute else self.encoder(x)
        x = self.middle(x) if self.middle else x
        return self.head(self.norm(x))


def train(layout: Layout, seed: int = 0, steps: int = 6, recompute: bool = False) -> dict[str, np.ndarray]:
    """Parameters and running estimates after steps on batches of 10, 10 and 3 images."""
    model = Normalised(recompute)
    optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    loader = Loader(dataset(), 10, seed, prefetch=0).shard(layout.ranks.rank, layout.ranks.size)
    with layout:
        for step in range(steps):
            batch = loader.batch(*divmod(step, len(loader)))
            train_step(model, Classification(), batch, optimizer, seed, step, layout)
    return model.state_dict()


if __name__ == "__main__":
    ranks = connect()
    with ranks.together():
        state = train(Layout(int(sys.argv[2]), ranks=ranks))
    if ranks.rank == 0:
        np.savez(sys.argv[1], **state)
