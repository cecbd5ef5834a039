"""``benchmarks/augment.py`` runs, and prints the line that programs read. No test asserts a time."""

import importlib.util

from tests.test_benchmarks import report


def test_each_policy_gets_a_row():
    found = report("benchmarks/augment.py", "--quick")
    assert found["benchmark"] == "augment"
    names = {"randaugment", "autoaugment_cifar10", "autoaugment_imagenet"}
    assert {row["name"] for row in found["rows"]} == names | {"trivialaugment", "three_augment", "color_jitter"}
    for row in found["rows"]:
        assert (row["size"], row["batch"], row["rounds"]) == (32, 4, 2)
        assert row["minivit_images_per_second"] > 0
        if all(importlib.util.find_spec(name) for name in ("torchvision", "timm", "PIL")):
            low, high = row["spread"]
            assert 0 < low <= row["speedup_vs_pillow"] <= high
