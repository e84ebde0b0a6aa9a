"""Short uses of the API as its reference shows them, block by block, run in order in one namespace.

    HF_ENDPOINT=... python tests/api_blocks.py

Each block is what a reader types. `given` is what the text around it takes for granted, `check`
what must hold afterwards. Only sizes are smaller than in the reference, where it would take
minutes.
"""

from __future__ import annotations

from pathlib import Path

from tests.api_blocks_core import CORE
from tests.api_blocks_tools import TOOLS

BLOCKS = [*CORE, *TOOLS]


def run() -> None:
    """Run all blocks in the current directory; each prints its title when it is done."""
    namespace: dict[str, object] = {"__name__": "__main__", "Path": Path}
    for block in BLOCKS:
        exec(compile(block.given, f"given: {block.title}", "exec"), namespace)
        error = ""
        try:
            exec(compile(block.code, block.title, "exec"), namespace)
        except AssertionError as raised:
            if not block.raises:
                raise
            error = "AssertionError"
            print(raised)
        assert error == block.raises, f"{block.title}: {error or 'nothing'} was raised"
        exec(compile(block.check, f"check: {block.title}", "exec"), namespace)
        print(f"done: {block.title}", flush=True)


if __name__ == "__main__":
    run()
