"""Who may import whom: the rooms of the house, read from the imports themselves.

A module may import from its own room and from rooms above it. Function-level imports count;
imports for type checkers only do not, since nothing is loaded by them.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline.imports import ImportGraph

ROOT = Path(__file__).parents[1]

ROOMS: dict[str, set[str]] = {
    # room -> rooms it may import from, beside itself
    "exceptions": set(),
    "files": {"exceptions"},
    "config": {"files", "exceptions"},
    "models": {"config", "files", "exceptions"},
    "text": {"config", "files", "exceptions"},
    "tokenizer": {"text", "config", "files", "exceptions"},
    "data": {"text", "tokenizer", "config", "files", "exceptions"},
    "utils": {"data", "text", "tokenizer", "models", "config", "files", "exceptions"},
    "export": {"utils", "data", "text", "tokenizer", "models", "config", "files", "exceptions"},
    "training": {"utils", "data", "text", "tokenizer", "models", "config", "files", "exceptions"},
}
ROOMS["pipeline"] = set(ROOMS)

FILES = {"digests", "json_file", "files", "manifests", "locks"}
"""Modules at the top of the library that make one room together."""

TEXT = {
    # where documents come from: no tokenizer needed, so the tokenizer may be trained from it
    "documents", "ledger", "sources", "stdlib", "local_files", "hub", "streams", "plain_text",
    "jsonl", "tables", "intake", "hub_files", "input_file", "remote_file", "units",
}  # fmt: skip

LOADED_BY_MLFLOW = "llm_trainer.training.tracking.pyfunc_model"
"""Model code that MLflow loads from its file; nothing of ours imports it."""

NUMBERS_WORDS = "llm_trainer.tokenizer.word_cache"
"""Uses Arrow as a hash table, and knows nothing of its files."""

HEAVY = (
    "torch",
    "ray",
    "fsspec",
    "mlflow",
    "datasets",
    "tensorboard",
    "transformers",
    "matplotlib",
    "wandb",
)


def modules() -> list[str]:
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("llm_trainer", "pipeline")
        for path in (ROOT / package).rglob("*.py")
    )


def room(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "pipeline":
        return "pipeline"
    if len(parts) == 1:
        return "exceptions"  # the package itself: above everything
    if parts[1] == "data" and len(parts) > 2 and parts[2] in TEXT:
        return "text"
    return "files" if parts[1] in FILES else parts[1]


def is_package(module: str) -> bool:
    return (ROOT.joinpath(*module.split(".")) / "__init__.py").is_file()


GRAPH = ImportGraph(ROOT)


def imports(module: str) -> set[str]:
    """Modules imported by name; that a module's packages are loaded too is nobody's wish."""
    found = GRAPH.edges(module)
    return {m for m in found if not (is_package(m) and any(x.startswith(f"{m}.") for x in found))}


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_rooms_above_it(module: str) -> None:
    home = room(module)
    assert home in ROOMS, f"{module}: no room '{home}'; list it in ROOMS with what it may know"
    allowed = ROOMS[home] | {home}
    wrong = {m for m in imports(module) if room(m) not in allowed and m != "llm_trainer"}
    assert not wrong, f"{module} ({home}) may not import {sorted(wrong)}"


def test_no_cycles_between_modules() -> None:
    """Counting what is loaded at import; a function-level import may look back (of its room)."""
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, f"import cycle: {' -> '.join((*path, module))}"
        if state.get(module) == 2:
            return
        state[module] = 1
        for target in sorted(GRAPH.top_edges(module)):
            # a module loads its own packages first; that they are still loading is no cycle
            if not module.startswith(f"{target}."):
                visit(target, (*path, module))
        state[module] = 2

    for module in modules():
        visit(module, ())


@pytest.mark.parametrize("module", [m for m in modules() if m != LOADED_BY_MLFLOW])
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    """At the top only torch, and only in modules whose whole purpose is torch."""
    path = GRAPH.find(module)
    assert path is not None
    tops = [
        name.partition(".")[0]
        for node in ast.parse((ROOT / path).read_bytes()).body
        for name in imported_names(node)
    ]
    heavy = {name for name in tops if name in HEAVY}
    if room(module) in ("models", "training", "utils", "data", "export"):
        heavy.discard("torch")
    assert not heavy, f"{path} imports {sorted(heavy)} at the top; move it into the function"


def imported_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []


@pytest.mark.parametrize("module", [m for m in modules() if is_package(m) and m != "pipeline"])
def test_package_files_hold_exports_only(module: str) -> None:
    """So that no stage depends on an `__init__.py` (see pipeline.dependencies.NEVER)."""
    path = GRAPH.find(module)
    assert path is not None
    for node in ast.parse((ROOT / path).read_bytes()).body:
        allowed = (
            isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
            or (isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__"))
        )
        assert allowed, f"{path}:{node.lineno}: code in a package file; move it into a module"


def test_one_module_reads_params_and_one_room_knows_mlflow() -> None:
    for module in modules():
        path = GRAPH.find(module)
        assert path is not None
        names = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse((ROOT / path).read_bytes()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in imported_names(node)
        }
        if "mlflow" in names:
            assert module.startswith(("llm_trainer.training.tracking.", "pipeline.ui")), module
        if "pyarrow" in names and module != NUMBERS_WORDS:
            assert room(module) in ("data", "text"), module
