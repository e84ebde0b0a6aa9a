"""The rows of the fault table, in its order; each is imported when it runs."""

from __future__ import annotations

ROWS: dict[str, str] = {}
"""Name of the row -> module that holds it as `ROW`."""
