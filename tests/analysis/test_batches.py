import numpy as np
import pytest

from minivit.analysis.batches import each_batch
from minivit.data import Batch, Dataset, Loader
from minivit.nn import Linear


def batch(size):
    return Batch(np.zeros((size, 2), np.float32), np.zeros(size, np.int64), np.arange(size))


def test_a_loader_gives_its_first_epoch():
    images, labels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1), np.arange(5)
    loader = Loader(Dataset("five", images, labels, list("abcde")), batch_size=2, shuffle=False)
    seen = [b.labels.tolist() for b in each_batch(Linear(1, 1), loader, "looking")]
    assert seen == [[0, 1], [2, 3], [4]]


def test_batches_may_come_from_anywhere_and_no_bar_is_drawn_in_a_file(capsys):
    assert [len(b.images) for b in each_batch(Linear(2, 2), iter([batch(2), batch(3)]), "looking")] == [2, 3]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("batches", [[], [batch(0)]])
def test_nothing_to_look_at_gets_a_sentence(batches):
    with pytest.raises(ValueError, match=r"there is nothing to look at \(importance\): no images were given"):
        list(each_batch(Linear(2, 2), batches, "importance"))


def test_a_batch_elsewhere_gets_a_sentence(cupy_twin):
    with pytest.raises(TypeError, match="the images are on cpu, the model is on cuda:0"):
        list(each_batch(Linear(2, 2).to("cuda"), [batch(1)], "looking"))
