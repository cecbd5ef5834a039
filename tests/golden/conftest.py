"""The references need PyTorch, timm, transformers and vit-pytorch, which the tests do without: pytest skips them."""

collect_ignore = [
    "reference.py",
    "positions.py",
    "variants.py",
    "mae.py",
    "distillation.py",
    "resnets.py",
    "make_golden.py",
]
