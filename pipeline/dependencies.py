"""Keep `dvc.yaml` equal to the code: which modules each stage uses, which params it reads.

    python -m pipeline.dependencies            compare; exit code 2 if they differ
    python -m pipeline.dependencies --write    write the lists of modules into dvc.yaml

A module that is used but not listed gives stale results in silence; one that is listed but not
used makes a stage run for nothing. Modules are found by following imports (`pipeline.imports`),
params by the attributes of `params` that a stage's own module reads. `dvc.yaml`'s comments and
other entries stay.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from llm_trainer.config import Experiment
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.files import write_text
from pipeline.imports import ImportGraph
from pipeline.stage import run_stage

DVC_YAML = Path("dvc.yaml")

EXCLUDED = {
    "llm_trainer.config": "every value that a stage reads is one of its params, and params.yaml "
    "holds all of them, so defaults and checks change no result",
    "llm_trainer.exceptions": "names of errors",
    "llm_trainer.locks": "says who may write, not what",
    "llm_trainer.training.connections": "ends connections, and with them the process",
    "llm_trainer.training.tracking": "shows a run to trackers and reads nothing back",
    "pipeline.dependencies": "names the code of a stage (for a run's fingerprint)",
    "pipeline.gc": "removes checkpoints of runs that are over",
    "pipeline.imports": "the same",
    "pipeline.launch": "starts processes, whose number changes no result",
    "pipeline.params": "reads params.yaml, whose values DVC watches",
    "pipeline.paths": "the same names stand in dvc.yaml, which a test compares",
    "pipeline.stage": "error messages and exit codes",
    "pipeline.worker": "who of several processes speaks, locks and prints",
}
"""Modules (or packages) that are used but are no dependency, and why."""

NEVER = "__init__.py"
"""These files hold docstrings and exports only (a test holds them to it)."""

ALL_SECTIONS = "sections"
"""Method of `params` that gives all values; they may go to trackers, which change no result."""

UNWATCHED_SECTION = "runtime"
"""The section that changes no result: any stage may read it, none lists it."""


def stage_modules(stage: str, root: Path = Path()) -> list[str]:
    """Source files that the stage's result depends on, relative to `root`, sorted."""
    graph = ImportGraph(root)
    used = graph.used_by(f"pipeline.{stage}", frozenset(EXCLUDED))
    paths = [graph.find(name) for name in used]
    return sorted(path.as_posix() for path in paths if path is not None and path.name != NEVER)


def stage_params(stage: str, root: Path = Path()) -> list[str]:
    """Params that the stage reads: `section`, or `section.key` where it reads single keys only.

    Raises:
        ConfigurationError: the stage hands `params` on as a whole, so that nobody can tell.
    """
    path = root / "pipeline" / f"{stage}.py"
    tree = ast.parse(path.read_bytes(), filename=str(path))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    known = {f.name for f in fields(Experiment)} - {UNWATCHED_SECTION}
    sections: set[str] = set()
    keys: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Name) and node.id == "params"):
            continue
        if not isinstance(node.ctx, ast.Load):
            continue
        section = parents[node]
        if not isinstance(section, ast.Attribute):
            raise ConfigurationError(
                f"{path}:{node.lineno}: hands on all params; name the sections it needs"
            )
        if section.attr not in known:
            assert section.attr in (ALL_SECTIONS, UNWATCHED_SECTION), ast.unparse(section)
            continue
        key = parents[section]
        if isinstance(key, ast.Attribute) and not _is_callee(key, parents):
            keys.add((section.attr, key.attr))
        else:
            sections.add(section.attr)
    return sorted(sections | {f"{s}.{k}" for s, k in keys if s not in sections})


def _is_callee(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    call = parents[node]
    return isinstance(call, ast.Call) and call.func is node


def is_module(dependency: str) -> bool:
    """Whether an entry of a stage's `deps` is a source file of ours (the others are data)."""
    return dependency.endswith(".py") and dependency.startswith(("llm_trainer/", "pipeline/"))


def _load() -> tuple[Any, Any]:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        return yaml, yaml.load(DVC_YAML.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{DVC_YAML}: no such file; give the command in the project's root"
        ) from None


def differences(document: Any, root: Path = Path()) -> Iterator[str]:
    """What `dvc.yaml` says otherwise than the code, one line each."""
    for name, stage in document["stages"].items():
        listed = {d for d in stage.get("deps", []) if is_module(d)}
        used = set(stage_modules(name, root))
        yield from (f"{name}: uses {m}, which deps lack" for m in sorted(used - listed))
        yield from (f"{name}: deps list {m}, which it does not use" for m in sorted(listed - used))
        watched, read = set(stage.get("params", [])), set(stage_params(name, root))
        yield from (f"{name}: reads {p}, which params lack" for p in sorted(read - watched))
        yield from (f"{name}: params list {p}, which it does not read" for p in watched - read)


def write(yaml: Any, document: Any) -> None:
    """Replace the modules among each stage's deps; data comes first and stays as it is."""
    import io

    for name, stage in document["stages"].items():
        deps = stage["deps"]
        deps[:] = [d for d in deps if not is_module(d)] + stage_modules(name)
    text = io.StringIO()
    yaml.dump(document, text)
    write_text(DVC_YAML, text.getvalue())


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: compare, or `--write`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.dependencies",
        description="Compare dvc.yaml with the imports and params of the stages.",
    )
    parser.add_argument("--write", action="store_true", help="write the modules into dvc.yaml")
    options = parser.parse_args(arguments)
    yaml, document = _load()
    if options.write:
        write(yaml, document)
        yaml, document = _load()
    found = list(differences(document))
    if found:
        raise ConfigurationError("\n".join(found))
    print(f"{DVC_YAML} agrees with the code")


if __name__ == "__main__":
    run_stage("dependencies", main)
