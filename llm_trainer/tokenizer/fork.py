"""Let processes fork after `tokenizers` has used its threads.

Rust's thread pool does not survive a fork: a child that used it would wait for ever, so
`tokenizers` prints a long warning at each fork and switches its threads off, unless
TOKENIZERS_PARALLELISM says what to do. Here it is said for forked children only: no threads there,
no warning, and the parent keeps its threads. A value set by the user stays.
"""

from __future__ import annotations

import os
from functools import cache

_VARIABLE = "TOKENIZERS_PARALLELISM"


@cache
def allow_forks() -> None:
    """Install the hooks, once a process."""
    ours = False

    def before() -> None:
        nonlocal ours
        ours = _VARIABLE not in os.environ
        if ours:
            os.environ[_VARIABLE] = "false"

    def after_in_parent() -> None:
        if ours:
            os.environ.pop(_VARIABLE, None)

    os.register_at_fork(before=before, after_in_parent=after_in_parent)
