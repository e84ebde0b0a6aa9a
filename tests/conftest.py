"""What all tests share: an environment of their own, and steady property tests."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator

import hypothesis
import pytest

# Set before torch is imported anywhere: test processes run side by side, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing of the user's own set-up may reach the tests, and nothing of theirs may leave.
for name in (
    "DVC_EXP_BASELINE_REV", "DVC_EXP_NAME", "DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_INDEX_FILE",
    "GIT_WORK_TREE", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI",
):  # fmt: skip
    os.environ.pop(name, None)
os.environ.update(
    DVC_NO_ANALYTICS="1",
    GIT_AUTHOR_EMAIL="tests@example.invalid",
    GIT_AUTHOR_NAME="Tests",
    GIT_COMMITTER_EMAIL="tests@example.invalid",
    GIT_COMMITTER_NAME="Tests",
    GIT_CONFIG_GLOBAL=os.devnull,
    GIT_CONFIG_SYSTEM=os.devnull,
    MLFLOW_DISABLE_TELEMETRY="true",
    MPLBACKEND="agg",
)

# What a shell starts in the background does not hear Ctrl-C, nor would what the tests start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in each run: a failure seen once is seen again.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that no process is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Scripts and `setup_logging` set levels and handlers for their process: undone after each."""
    loggers = (logging.getLogger(), logging.getLogger("llm_trainer"))
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
