from pathlib import Path

import numpy as np
import pytest

from minivit.data import Dataset, Loader
from minivit.data import augment as package
from minivit.data.augment import (
    AutoAugment,
    ColorJitter,
    Mix,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ThreeAugment,
    TrivialAugment,
    augmentations,
)
from minivit.data.augment.compose import DEFAULTS, IMAGES


def test_each_name_without_and_with_a_value():
    cases = {
        "crop": RandomCrop(4), "crop=2": RandomCrop(2),
        "resized_crop": RandomResizedCrop(), "resized_crop=.2": RandomResizedCrop((0.2, 1.0)),
        "flip": RandomHorizontalFlip(), "flip=1": RandomHorizontalFlip(1.0),
        "randaugment": RandAugment(), "randaugment=5": RandAugment(magnitude=5.0),
        "randaugment=rand-m7-n3": RandAugment(3, 7.0, std=0.0, increasing=False),
        "autoaugment": AutoAugment(), "autoaugment=cifar10": AutoAugment("cifar10"),
        "trivialaugment": TrivialAugment(), "trivialaugment=1": TrivialAugment(1.0),
        "threeaugment": ThreeAugment(), "threeaugment=.1": ThreeAugment(0.1),
        "color_jitter": ColorJitter(0.4, 0.4, 0.4), "color_jitter=.2": ColorJitter(0.2, 0.2, 0.2),
        "erasing": RandomErasing(), "erasing=.5": RandomErasing(0.5),
    }  # fmt: skip
    for text, expected in cases.items():
        assert augmentations(text) == {"augment": [expected]}


def test_mixing():
    def mix(text):
        [only] = augmentations(text)["augment"]
        return only

    assert mix("mixup") == Mix(0.8, 0.0, label_smoothing=0.0)
    assert mix("cutmix") == Mix(0.0, 1.0, label_smoothing=0.0)
    assert mix("smoothing") == Mix(0.0, 0.0, label_smoothing=0.1)
    assert mix("mixup=.5,cutmix=.3,mix=elem,smoothing=0.2") == Mix(0.5, 0.3, mode="elem", label_smoothing=0.2)


@pytest.mark.parametrize("text", ["", " ", ","])
def test_nothing(text):
    assert augmentations(text) == {"augment": []}


def test_any_order_and_spaces():
    one = augmentations("randaugment,mixup=.8,cutmix=1,erasing=.25,crop=4,flip,repeated=3,smoothing=.1")
    other = augmentations(" smoothing = .1, flip,repeated=3,crop=4,cutmix=1 ,mixup=.8,erasing=.25,randaugment")
    kinds = [RandomCrop, RandomHorizontalFlip, RandAugment, RandomErasing, Mix]
    assert one == other and [type(augment) for augment in one["augment"]] == kinds and one["repeats"] == 3


def test_all_names_together_make_batches():
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    data = Dataset("noise", images, np.arange(12) % 3, list("abc"))
    batches = list(Loader(data, 6, **augmentations(",".join(DEFAULTS))).epoch(0))
    assert [batch.images.shape for batch in batches] == [(6, 3, 32, 32)] * 2
    assert all(np.isfinite(batch.images).all() for batch in batches)


def test_every_augmentation_has_a_name_and_every_name_is_explained():
    made = {type(make(default)).__name__ for default, make in IMAGES.values()}
    assert made | {"Mix", "augmentations"} == set(package.__all__)
    for name in DEFAULTS:
        assert f"``{name}``" in augmentations.__doc__
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {"__init__", "boxes"}
    assert all(f"``{module}``" in package.__doc__ for module in modules)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("crop,colour", "there is no augmentation 'colour': choose from crop, resized_crop, flip, .*repeated"),
        ("flip,crop,flip=1", "flip is named twice in 'flip,crop,flip=1'"),
        ("crop=1.5", "crop takes a whole number, such as crop=4, got 'crop=1.5'"),
        ("erasing=much", "erasing takes a number, such as erasing=0.25, got 'erasing=much'"),
        ("flip=", "flip takes a number, such as flip=0.5, got 'flip='"),
        ("erasing=2", "erasing=2.0 cannot be: p must be a probability between 0 and 1, got 2.0"),
        ("randaugment=x", "randaugment=x cannot be: config must look like 'rand-m9"),
        ("autoaugment=mnist", "autoaugment=mnist cannot be: policy must be one of .*cifar10"),
        ("mixup=-1", "mixup_alpha must be 0 or more, got -1"),
        ("mixup,mix=all", "mode must be one of batch, pair, elem, got 'all'"),
        ("mix=elem", "mix=elem says what mixup and cutmix draw for, but neither is named"),
    ],
)
def test_what_cannot_be_gets_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        augmentations(text)
