"""Prove it on this machine: `python -m pipeline.verify [--artifacts] [--repeat] [--interrupt]`.

--artifacts (the default, seconds): every file of data/, models/ and the figures is as its manifest,
the model's lineage and dvc.lock say, from the evaluation back to the raw text.
--repeat: two short trainings of the model in params.yaml on the packed rows give the same bytes.
--interrupt: one that is killed (SIGKILL), continued, stopped (SIGTERM) and continued gives the same
bytes as one that nothing disturbed.

The trainings are the stage `train` itself, in a temporary folder (TMPDIR moves it) that holds a few
checkpoints; nothing of yours is written. Where something differs, what could be the cause is said:
threads, instruction set, versions, deterministic algorithms.

Exit codes: 0 all equal, 1 something differs, 2 wrong use or nothing to verify.
"""

from __future__ import annotations

import argparse
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import ConfigurationError, IntegrityError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from pipeline.artifacts import ARTIFACTS, Check, check_artifacts
from pipeline.params import PARAMS, load_params
from pipeline.stage import main_checkout, run_stage
from pipeline.trial import MIN_STEPS, Result, Trial, copy_code, user_compiles

EXIT_DIFFERS = 1
RECORD_FORMAT = 1
_NAMED_FILES = 3
"""Differing files that are named."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; ends the process with the exit codes of the header."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.verify", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--artifacts", action="store_true", help="files against their records")
    parser.add_argument("--repeat", action="store_true", help="two runs, the same bytes")
    parser.add_argument("--interrupt", action="store_true", help="killed and continued, the same")
    parser.add_argument("--all", action="store_true", help="all three")
    parser.add_argument(
        "--steps", type=int, default=20, metavar="N",
        help="optimizer steps of each training (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--record", type=Path, metavar="FILE",
        help="run one training and write its digests to FILE, to compare on another machine",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="run one training and compare it with FILE"
    )
    options = parser.parse_args(arguments)
    if options.steps < MIN_STEPS:
        parser.error(f"--steps {options.steps}: must be at least {MIN_STEPS}")
    trains = options.all or any(
        (options.repeat, options.interrupt, options.record, options.against)
    )  # fmt: skip
    failed = False
    if options.artifacts or options.all or not trains:
        failed |= _show(_artifacts())
    if trains:
        earlier = None if options.against is None else _read_record(options.against)
        failed |= _show(_trainings(options, earlier))
    if failed:
        raise SystemExit(EXIT_DIFFERS)


def _show(checks: Iterator[Check]) -> bool:
    """Print each line as it is known; whether one differs."""
    failed = False
    for check in checks:
        print(check.render(), flush=True)
        failed |= check.state == "differs"
    return failed


def _artifacts() -> Iterator[Check]:
    if not any(path.exists() for path in ARTIFACTS):
        names = ", ".join(map(str, ARTIFACTS))
        raise ConfigurationError(
            f"nothing to verify: {names} are not here; `dvc repro` makes them, `dvc pull` fetches "
            f"them, and the command is given in the project's root"
        )
    root = main_checkout()
    folder = load_params().runtime.checkpoint_root if PARAMS.is_file() else ".checkpoints"
    return check_artifacts(root / folder)


# --------------------------------------------------------------------------- trainings


def _trainings(options: argparse.Namespace, earlier: dict[str, Any] | None) -> Iterator[Check]:
    """Run what was asked for; the first, undisturbed run is what the others are compared with."""
    compiled, steps = user_compiles(), options.steps
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        place = Path(scratch).resolve()
        code = copy_code(place / "code")

        def trial(name: str) -> Trial:
            cache = place / "compiled"
            return Trial(place / name, steps, code=code, compiled=compiled, cache=cache)

        with _progress("first run", steps) as progress:
            first = trial("first").run(progress)
        yield Check("bits depend on", "note", _described(first.environment))
        if options.record is not None:
            write_json(options.record, _record(first, steps))
            yield Check("record", "note", f"{len(first.digests)} digests in {options.record}")
        if earlier is not None:
            yield _compare_record(options.against, earlier, _record(first, steps))
        if options.repeat or options.all:
            with _progress("second run", steps) as progress:
                second = trial("second").run(progress)
            yield compare("repeat", f"2 runs of {steps} steps", first, second)
        if options.interrupt or options.all:
            disturbed = trial("disturbed")
            delay = first.seconds / steps
            with _progress("interrupted run", steps) as progress:
                killed = disturbed.interrupt(signal.SIGKILL, delay, progress)
                stopped = disturbed.interrupt(signal.SIGTERM, delay, progress)
                third = disturbed.run(progress)
            what = (
                f"{steps} steps, continued from {killed} after SIGKILL and from {stopped} after "
                f"SIGTERM"
            )
            yield compare("interrupt", what, first, third)


@contextmanager
def _progress(name: str, steps: int) -> Iterator[Any]:
    """A bar of optimizer steps on a terminal, a line elsewhere; yields what is told the step."""
    from tqdm import tqdm

    with tqdm(total=steps, desc=name, unit="step", disable=None, file=sys.stderr) as bar:
        if bar.disable:
            print(f"{name}: {steps} steps", file=sys.stderr, flush=True)

        def tell(step: int) -> None:
            bar.update(step - bar.n)

        yield tell
        tell(steps)


def compare(name: str, what: str, first: Result, second: Result) -> Check:
    """Whether two trials ended in the same bytes; if not, in which files, and why perhaps."""
    if first.digests == second.digests:
        detail = f"{what}: {len(first.digests)} files, {first.num_bytes:,} bytes, the same"
        return Check(name, "equal", detail)
    why = causes(first.environment, second.environment)
    return Check(
        name, "differs", f"{what}: {_differing(first.digests, second.digests)}; {why}"
    )  # fmt: skip


def causes(first: dict[str, Any], second: dict[str, Any]) -> str:
    """What of that which bits depend on differs between two runs, in words."""
    others = [
        f"{name} {first.get(name)} -> {second.get(name)}"
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]
    if first.get("deterministic") is False or second.get("deterministic") is False:
        others.append("training.deterministic is off, so operations may add in any order")
    return "; ".join(others) or (
        "nothing that the project knows of differs: please report it with the output of "
        "`python -m pipeline.verify --all`"
    )


def _differing(first: dict[str, str], second: dict[str, str]) -> str:
    names = [n for n in sorted({*first, *second}) if first.get(n) != second.get(n)]
    more = len(names) - _NAMED_FILES
    return ", ".join(names[:_NAMED_FILES]) + (f" and {more} more" if more > 0 else "") + " differ"


def _described(environment: dict[str, Any]) -> str:
    yes_no = {True: "yes", False: "no"}
    return ", ".join(
        f"{name} {yes_no.get(value, value) if isinstance(value, bool) else value}"
        for name, value in environment.items()
    )


# --------------------------------------------------------------------------- records


def _record(result: Result, steps: int) -> dict[str, Any]:
    """What `--record` writes: no times, no places, so it may be committed or sent."""
    return {
        "format": RECORD_FORMAT,
        "steps": steps,
        "fingerprint": result.fingerprint,
        "environment": {**result.environment, "python": platform.python_version()},
        "digests": result.digests,
    }


def _read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        ConfigurationError: there is none, or it is something else.
    """
    try:
        record = read_json(path)
    except IntegrityError as error:
        raise ConfigurationError(f"{error}; `--record {path}` writes one") from error
    if (
        not isinstance(record, dict)
        or record.get("format") != RECORD_FORMAT
        or not isinstance(record.get("steps"), int)
        or not isinstance(record.get("fingerprint"), str)
        or not all(isinstance(record.get(name), dict) for name in ("environment", "digests"))
    ):
        raise ConfigurationError(f"{path}: not a record of format {RECORD_FORMAT} of this command")
    return record


def _compare_record(path: Path, earlier: dict[str, Any], now: dict[str, Any]) -> Check:
    name = "against"
    if earlier["steps"] != now["steps"]:
        raise ConfigurationError(
            f"{path} is of {earlier['steps']} steps; give --steps {earlier['steps']}"
        )
    if earlier["fingerprint"] != now["fingerprint"]:
        return Check(
            name, "differs", f"{path} is of another run: params, packed rows, tokenizer or code "
            f"differ ({earlier['fingerprint'][:12]} -> {now['fingerprint'][:12]})",
        )  # fmt: skip
    if earlier["digests"] == now["digests"]:
        return Check(name, "equal", f"{path}: {len(now['digests'])} files, the same")
    why = causes(earlier["environment"], now["environment"])
    return Check(
        name, "differs", f"{path}: {_differing(earlier['digests'], now['digests'])}; {why}"
    )


if __name__ == "__main__":
    run_stage("verify", main)
