"""The references need PyTorch, timm and transformers, which the tests do without: pytest shall not import them."""

collect_ignore = ["reference.py", "make_golden.py"]
