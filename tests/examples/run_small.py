"""Run an example with smaller numbers in its configurations, and otherwise as it is.

python run_small.py examples/complete_training.py '{"ModelConfig": {"d_model": 32}}'
"""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

from llm_trainer import config


def shrink(cls: Any, values: dict[str, Any]) -> None:
    """Let `values` win over what the constructor of `cls` is given."""
    original = cls.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, **values})

    cls.__init__ = init


if __name__ == "__main__":
    for name, smaller in json.loads(sys.argv[2]).items():
        shrink(getattr(config, name), smaller)
    runpy.run_path(sys.argv[1], run_name="__main__")
