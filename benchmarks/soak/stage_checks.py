"""A stage with a clock on its checks: `python -m benchmarks.soak.stage_checks STAGE OUT`.

Every function that only checks is wrapped before the stage begins; the seconds within the outermost
of them are added up. The stage itself runs as it always does, in the current directory.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import functools  # noqa: E402 - the clock runs first: imports are part of a stage's time
import importlib  # noqa: E402
import sys  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

EVERYWHERE = {
    "hashing and manifests": [
        "llm_trainer.digests:sha256_file", "llm_trainer.digests:digest_json",
        *(
            f"llm_trainer.manifests:{name}"
            for name in ("verify_manifest", "read_manifest", "write_manifest", "manifest_digest")
        ),
    ],
    "configuration": ["pipeline.params:load_params"],
    "ledger": [
        f"llm_trainer.data.ledger:Ledger.{name}"
        for name in ("take_in", "give_out", "add", "drop", "note", "check", "to_dict")
    ],
}  # fmt: skip
ROWS = {"rows": ["llm_trainer.data.shards:PackedRows._check_content"]}
STAGE_CHECKS: dict[str, dict[str, list[str]]] = {
    "train": ROWS | {
        "code digests": [
            "pipeline.dependencies:stage_modules", "llm_trainer.training.fingerprint:code_digests",
        ],
        "fit": [
            "llm_trainer.training.compatibility:check_fit",
            "llm_trainer.training.checkpoint:check_identity",
            "llm_trainer.training.checkpoint:check_environment",
        ],
    },
    "evaluate": ROWS | {
        "fit": ["llm_trainer.utils.loading:check_pair", "llm_trainer.utils.evaluation:check_rows"],
    },
    "benchmark": ROWS | {"fit": ["llm_trainer.utils.evaluation:check_rows"]},
}  # fmt: skip
"""Checks of single stages; the modules are ones that the stage imports anyway."""


class Clock:
    """Adds up the time within the outermost of the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside = False

    def wrap(self, group: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if self.inside:
                return function(*arguments, **keywords)
            self.inside, started = True, time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[group] += time.perf_counter() - started
                self.inside = False

        return timed

    def replace(self, group: str, name: str) -> None:
        """Wrap `module:function` or `module:Class.method`, wherever it was imported to."""
        module_name, _, path = name.partition(":")
        owner: Any = importlib.import_module(module_name)
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        plain = getattr(owner, last)
        timed = self.wrap(group, plain)
        setattr(owner, last, timed)
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith(("llm_trainer", "pipeline")):
                for key, value in list(vars(module).items()):
                    if value is plain:
                        setattr(module, key, timed)


def main() -> None:
    """Run the stage, write its seconds."""
    stage, out = sys.argv[1:]
    clock = Clock()
    checks = EVERYWHERE | STAGE_CHECKS.get(stage, {})
    for group, names in checks.items():
        for name in names:
            clock.replace(group, name)
    from llm_trainer.files import write_json
    from pipeline.stage import run_stage

    run_stage(stage, importlib.import_module(f"pipeline.{stage}").main)
    total = time.perf_counter() - STARTED
    write_json(Path(out), {"total": total, "checks": dict(clock.seconds)})


if __name__ == "__main__":
    main()
