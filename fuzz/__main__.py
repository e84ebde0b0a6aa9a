"""`python -m fuzz [TARGET ...] [--seconds 120]`: nonsense for the loaders, guided by coverage.

Needs atheris (`pip install -e '.[fuzz]'`), which ends the process, so each target runs in one of
its own, one after the other. What breaks a target is kept in fuzz/findings/ and can be given back:
`python -m fuzz TARGET --replay FILE`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.target import Target, made_folders
from fuzz.targets import TARGETS
from llm_trainer.digests import sha256_bytes

FINDINGS = Path(__file__).parent / "findings"
MAX_INPUT_BYTES = 16_384
SLOWEST_SECONDS = 20
"""One input may take this long before it counts as a hang."""
MOST_MEGABYTES = 4096
"""Memory beyond which an input counts as a bomb."""


def main() -> int:
    """Run the targets and return 1 if one was broken."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=120, help="for each (default: %(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="give one input to the target")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"unknown target {unknown[0]}; there are {', '.join(TARGETS)}")
    names: list[str] = options.targets or list(TARGETS)
    if options.replay is not None:
        load(names[0]).run(options.replay.read_bytes())
        return 0
    if options.inside:
        fuzz(names[0], options.seconds)
    try:
        importlib.import_module("atheris")
    except ImportError:
        print("error: needs atheris; `pip install -e '.[fuzz]'` brings it", file=sys.stderr)
        return 2
    failed = [name for name in names if not _run(name, options.seconds)]
    if failed:
        print(f"broken: {', '.join(failed)}; the inputs are in {FINDINGS}")
    return int(bool(failed))


def load(name: str) -> Target:
    """The target of this name."""
    target: Target = importlib.import_module(TARGETS[name]).TARGET
    return target


def _run(name: str, seconds: int) -> bool:
    print(f"{name}: {seconds} s", flush=True)
    command = [sys.executable, "-m", "fuzz", name, "--inside", "--seconds", str(seconds)]
    return subprocess.run(command, check=False).returncode == 0


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    logging.disable(logging.CRITICAL)  # warnings of the library, thousands a second
    with atheris.instrument_imports(include=["llm_trainer", "yaml"]):
        target = load(name)
    FINDINGS.mkdir(exist_ok=True)
    corpus = Path(tempfile.mkdtemp())
    for seed in target.seeds():
        (corpus / sha256_bytes(seed)[:16]).write_bytes(seed)
    arguments = [
        sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={SLOWEST_SECONDS}", f"-rss_limit_mb={MOST_MEGABYTES}", "-print_final_stats=1",
        "-verbosity=0", f"-artifact_prefix={FINDINGS}/{name}-",
    ]  # fmt: skip
    atheris.Setup(arguments, target.run)
    try:
        atheris.Fuzz()
    finally:
        for place in (corpus, *made_folders()):
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
