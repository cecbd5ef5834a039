"""The references need PyTorch, timm, transformers and vit-pytorch, which the tests do without: pytest skips them."""

collect_ignore = ["reference.py", "positions.py", "variants.py", "make_golden.py"]
