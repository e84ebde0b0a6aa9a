"""Reading JSON that may be damaged or hostile: capped in size and depth, regular files only.

Price: a look at every value after parsing, 0.05 s for the vocabulary of 100,000 tokens.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import IntegrityError

MAX_JSON_BYTES = 64 * 2**20
"""Largest JSON file that is read into memory; ours are kilobytes, a larger one is not ours."""
MAX_JSON_DEPTH = 64
"""Deepest nesting; ours is below 10. Deeper, what is done with a value may run out of stack."""


def read_json(path: str | os.PathLike[str], *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file.

    Raises:
        IntegrityError: missing, no regular file, larger than `max_bytes`, not UTF-8, not JSON, or
            nested deeper than MAX_JSON_DEPTH.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise IntegrityError(f"{path}: not a regular file")
        size = path.stat().st_size
        if size > max_bytes:
            raise IntegrityError(
                f"{path}: {size:,} bytes; a JSON file of ours has at most {max_bytes:,}"
            )
        value = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise IntegrityError(f"{path}: file is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: not readable as JSON ({error})") from error
    if _is_deeper(value, MAX_JSON_DEPTH):
        raise IntegrityError(
            f"{path}: not readable as JSON (nested deeper than {MAX_JSON_DEPTH} levels)"
        )
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, dict | list)
        ]
    return bool(level)
