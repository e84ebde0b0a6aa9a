"""LLM Trainer: pretrain a language model from raw text, reproducibly.

Importing the package is cheap on purpose: torch, mlflow and datasets are imported by the modules
that use them, so that `--help` and configuration errors answer at once.
"""

__version__ = "0.1.0"
