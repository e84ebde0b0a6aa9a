"""Nonsense given to any public function is named: parameter, value, remedy; also without asserts.

The table is in `tests.errors`: for each function a call that works, and for each of its parameters
the values that must be refused.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.errors.nonsense import Entry, failures
from tests.errors.table import ENTRIES, EXEMPT
from tests.errors.world import World
from tests.test_api_contract import SIGNATURES, resolve
from tests.test_layers import ROOT

PACKAGES = (
    "config", "models", "tokenizer", "data", "training", "utils.generation", "utils.planning",
)  # fmt: skip
ids = [f"{number}-{entry.name.rpartition(':')[2]}" for number, entry in enumerate(ENTRIES)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    before = os.getcwd()
    yield World(tmp_path_factory.mktemp("errors") / "project")
    os.chdir(before)


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_nonsense_is_named(world: World, entry: Entry) -> None:
    assert not failures(entry, world)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.kinds], ids=lambda e: e.name)
def test_the_call_works_without_the_nonsense(world: World, entry: Entry) -> None:
    """So it is the nonsense that is refused, and nothing else."""
    entry.target(world)(**entry.valid(world))


def test_the_same_without_assertions() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-m", "tests.errors"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, timeout=300,
    )  # fmt: skip
    assert "assertions off" in done.stderr, done.stderr[-2000:]
    assert done.stdout.strip() == ""
    assert done.returncode == 0


# --------------------------------------------------------------------------- completeness


def public() -> dict[str, Any]:
    """home:name -> object, of all that the pages of docs/api.md show and packages export."""
    shown = re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE)
    found = [named(name) for name in shown if not is_exempt(name)]
    for package in PACKAGES:
        module = importlib.import_module(f"llm_trainer.{package}")
        found += [getattr(module, name) for name in module.__all__]
    found += [resolve(name) for name in SIGNATURES]
    return {home(item): item for thing in found for item in members(thing)}


def named(name: str) -> Any:
    """What a dotted name stands for: a module, or something in one."""
    module, _, last = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), last)


def members(thing: Any) -> Iterator[Any]:
    """What of it can be called: the functions and classes of a module, the methods of a class."""
    if inspect.ismodule(thing):
        for name, item in vars(thing).items():
            own = getattr(item, "__module__", None) == thing.__name__
            if own and not name.startswith("_") and (inspect.isclass(item) or callable(item)):
                yield from members(item)
    elif inspect.isclass(thing):
        yield thing
        for cls in thing.__mro__:
            if cls.__module__.startswith("llm_trainer"):
                own = [n for n, item in vars(cls).items() if not isinstance(item, property)]
                methods = [getattr(thing, name) for name in own if not name.startswith("_")]
                yield from filter(callable, methods)
    elif callable(thing):
        yield thing


def home(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def is_exempt(name: str) -> bool:
    """By itself, its class or its module."""
    module, _, path = name.partition(":")
    package = ".".join(module.split(".")[:2])
    return bool({name, f"{module}:{path.partition('.')[0]}", module, package} & EXEMPT.keys())


def parameters(thing: Any) -> set[str]:
    """Names of the parameters that a caller gives; of classes those of their constructor."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return set()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found = inspect.signature(thing).parameters.values()
    return {p.name for p in found if p.name != "self" and p.kind not in kinds}


def test_every_parameter_of_every_public_function_has_its_nonsense() -> None:
    covered: dict[str, set[str]] = {}
    for entry in ENTRIES:
        module, _, path = entry.name.partition(":")
        item: Any = importlib.import_module(module)
        for part in path.split("."):
            item = getattr(item, part)
        covered.setdefault(home(item), set()).update(entry.kinds)
    missing = {
        name: sorted(lacking)
        for name, item in public().items()
        if not is_exempt(name) and (lacking := parameters(item) - covered.get(name, set()))
    }
    assert not missing, "add rows to tests/errors, or a reason to its EXEMPT"
    known = public()
    gone = {name for name in EXEMPT if ":" in name and name not in known}
    assert not gone, "public no more: take them out of EXEMPT"
