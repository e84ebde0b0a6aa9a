"""What a test needs of the machine, where not every machine has it."""

from __future__ import annotations

import pytest

from llm_trainer.utils.compiler import compiler_problem

needs_compiler = pytest.mark.skipif(
    compiler_problem() is not None, reason=f"compiling: {compiler_problem()}"
)
