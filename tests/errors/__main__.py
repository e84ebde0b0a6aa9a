"""The table without pytest, which would keep assertions: `python -O -m tests.errors`.

Prints what is wrong, one line each; exit code 1 if anything is.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.errors.nonsense import failures
from tests.errors.table import ENTRIES
from tests.errors.world import World


def main() -> int:
    """Run all of it in a directory of its own."""
    with tempfile.TemporaryDirectory() as path:
        world = World(Path(path) / "project")
        found = [line for entry in ENTRIES for line in failures(entry, world)]
        os.chdir("/")
    print("\n".join(found))
    print(f"{len(ENTRIES)} functions, assertions {'on' if __debug__ else 'off'}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
