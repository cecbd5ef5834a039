"""Augmentations by name, as a command line gives them: ``crop=4,flip,erasing=0.25,mixup=0.8,cutmix=1``."""

from collections.abc import Callable
from typing import Any

from minivit.data.augment.autoaugment import AutoAugment
from minivit.data.augment.crop import RandomCrop
from minivit.data.augment.erasing import RandomErasing
from minivit.data.augment.flip import RandomHorizontalFlip
from minivit.data.augment.jitter import ColorJitter, GaussianBlur, RandomGrayscale, Solarization
from minivit.data.augment.mix import Mix
from minivit.data.augment.randaugment import RandAugment
from minivit.data.augment.resized_crop import RandomResizedCrop
from minivit.data.augment.three_augment import ThreeAugment
from minivit.data.augment.trivialaugment import TrivialAugment


def _randaugment(level: str) -> RandAugment:
    return RandAugment.from_config(level if level.startswith("rand") else f"rand-m{level}-mstd0.5-inc1")


# In the order in which they act: the value where none is given, and what is made of the value.
IMAGES: dict[str, tuple[Any, Callable]] = {
    "crop": (4, RandomCrop),
    "resized_crop": (0.08, lambda smallest: RandomResizedCrop(scale=(smallest, 1.0))),
    "flip": (0.5, RandomHorizontalFlip),
    "randaugment": ("9", _randaugment),
    "autoaugment": ("imagenet", AutoAugment),
    "trivialaugment": (32 / 224, TrivialAugment),
    "threeaugment": (0.3, ThreeAugment),
    "color_jitter": (0.4, lambda amount: ColorJitter(amount, amount, amount)),
    "grayscale": (0.2, RandomGrayscale),
    "solarize": (0.2, Solarization),
    "blur": (0.5, GaussianBlur),
    "erasing": (0.25, RandomErasing),
}
# The value where none is given, and the argument that it is.
MIX: dict[str, tuple[Any, str]] = {
    "mixup": (0.8, "mixup_alpha"),
    "cutmix": (1.0, "cutmix_alpha"),
    "smoothing": (0.1, "label_smoothing"),
    "mix": ("batch", "mode"),
}
LOADER: dict[str, tuple[Any, str]] = {"repeated": (3, "repeats")}
DEFAULTS: dict[str, Any] = {name: default for name, (default, _) in (IMAGES | MIX | LOADER).items()}


def augmentations(text: str) -> dict[str, Any]:
    """The arguments of a ``Loader`` for names with commas between them, each with ``=value`` or without.

    | name                               | value, and that of a bare name     |                                    |
    | ---------------------------------- | ---------------------------------- | ---------------------------------- |
    | ``crop``                           | pixels, 4                          | moved by up to so many             |
    | ``resized_crop``                   | smallest share of the area, 0.08   | a part, as large as the whole      |
    | ``flip``                           | probability, 0.5                   | the mirror image                   |
    | ``randaugment``                    | level, 9, or rand-m9-mstd0.5-inc1  | two operations of fifteen          |
    | ``autoaugment``                    | imagenet or cifar10; imagenet      | two operations, searched for       |
    | ``trivialaugment``                 | largest translation, 0.143         | one operation of fourteen          |
    | ``threeaugment``                   | amount of colour jitter, 0.3       | grey, solarised or blurred         |
    | ``color_jitter``                   | amount, 0.4                        | brightness, contrast, saturation   |
    | ``grayscale``, ``solarize``        | probability, 0.2                   |                                    |
    | ``blur``                           | probability, 0.5                   |                                    |
    | ``erasing``                        | probability, 0.25                  | noise in a box                     |
    | ``mixup``, ``cutmix``              | α, 0.8 and 1                       | mixed with an image of the batch   |
    | ``mix``                            | batch, pair or elem; batch         | what λ is drawn for                |
    | ``smoothing``                      | share, 0.1 (not named: 0)          | of all classes in a label          |
    | ``repeated``                       | copies, 3                          | of each image                      |

    They act in the order of this table, whatever the order in ``text``.

    Raises ValueError for another name, a name that comes twice or a wrong value.

    >>> for augment in augmentations("mixup,flip,crop=2")["augment"]:
    ...     print(augment)
    RandomCrop(padding=2, mode='constant')
    RandomHorizontalFlip(p=0.5)
    Mix(mixup_alpha=0.8, cutmix_alpha=0.0, prob=1.0, switch_prob=0.5, mode='batch', label_smoothing=0.0)
    >>> augmentations("repeated=2")
    {'augment': [], 'repeats': 2}
    """
    values = _values(text)
    augment = [_made(name, make, values[name]) for name, (_, make) in IMAGES.items() if name in values]
    mix, loader = ({table[name][1]: values[name] for name in table if name in values} for table in (MIX, LOADER))
    if mix:
        if mix.keys() == {"mode"}:
            raise ValueError(f"mix={mix['mode']} says what mixup and cutmix draw for, but neither is named")
        augment.append(Mix(**{"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "label_smoothing": 0.0} | mix))
    return {"augment": augment} | loader


def _values(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, given, value = part.partition("=")
        if name not in DEFAULTS:
            raise ValueError(f"there is no augmentation {name!r}: choose from {', '.join(DEFAULTS)}")
        if name in values:
            raise ValueError(f"{name} is named twice in {text!r}")
        kind = type(DEFAULTS[name])
        try:
            values[name] = kind(value) if given else DEFAULTS[name]
        except ValueError:
            number = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name} takes {number}, such as {name}={DEFAULTS[name]}, got {part!r}") from None
    return values


def _made(name: str, make: Callable, value: Any) -> Any:
    try:
        return make(value)
    except ValueError as error:
        raise ValueError(f"{name}={value} cannot be: {error}") from None
