"""`dvc.yaml` against the code, and the reading of imports that the comparison rests on."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from llm_trainer.exceptions import ConfigurationError
from pipeline import paths
from pipeline.dependencies import (
    EXCLUDED,
    UNWATCHED_SECTION,
    is_module,
    stage_modules,
    stage_params,
)
from pipeline.imports import ImportGraph, UnresolvedImportError

ROOT = Path(__file__).parents[2]
DVC_YAML: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = DVC_YAML["stages"]

# --------------------------------------------------------------------------- the committed files


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_exactly_the_modules_that_the_stage_uses(stage: str) -> None:
    listed = [dep for dep in STAGES[stage]["deps"] if is_module(dep)]
    assert listed == stage_modules(stage, ROOT), "type: python -m pipeline.dependencies --write"


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_exactly_those_that_the_stage_reads(stage: str) -> None:
    assert STAGES[stage]["params"] == stage_params(stage, ROOT)
    assert UNWATCHED_SECTION not in str(STAGES[stage]["params"])


@pytest.mark.parametrize("stage", STAGES)
def test_data_in_and_out_is_what_the_stage_names(stage: str) -> None:
    """Each path of `pipeline.paths` that a stage's module uses is an entry, and each entry is."""
    tree = ast.parse((ROOT / "pipeline" / f"{stage}.py").read_bytes())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    named = {
        value.as_posix(): name for name, value in vars(paths).items() if isinstance(value, Path)
    }
    entries = [*STAGES[stage].get("deps", []), *STAGES[stage].get("outs", [])]
    entries += STAGES[stage].get("metrics", []) + STAGES[stage].get("plots", [])
    listed = {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}
    data = {path for path in listed if not is_module(path)}
    assert data <= set(named), "name it in pipeline/paths.py"
    assert {named[path] for path in data} <= used
    # data/raw is looked at by train for the ledger that it shows, which changes no result
    others = (used & set(named.values())) - {named[path] for path in data}
    assert others <= {"RAW", "METRICS"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_started_as_its_module_and_keeps_the_run_cache(stage: str) -> None:
    """What would switch DVC's run cache off: persist, always_changed, no deps."""
    definition = STAGES[stage]
    assert definition["cmd"] == f"python -m pipeline.{stage}"
    assert not {"always_changed", "frozen"} & set(definition)
    assert "persist" not in str(definition)
    assert f"pipeline/{stage}.py" in definition["deps"]
    # DVC's run cache is off for a stage with an uncached output that is no metric or plot
    assert all(isinstance(out, str) for out in definition.get("outs", []))
    for metric in definition["metrics"] + definition.get("plots", []):
        (settings,) = metric.values()
        assert settings["cache"] is False, "small and kept in git"


def test_what_is_excluded_exists_and_has_a_reason() -> None:
    graph = ImportGraph(ROOT)
    for name, reason in EXCLUDED.items():
        assert graph.find(name) is not None, name
        assert reason


def test_params_reads_survive_only_where_the_values_are_complete() -> None:
    """Config classes are excluded from deps; so no default may stand for a missing key."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    watched = {p for stage in STAGES.values() for p in stage["params"]}
    assert {p.partition(".")[0] for p in watched} | {UNWATCHED_SECTION} == set(params)


# --------------------------------------------------------------------------- the command


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.dependencies", *arguments],
        cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


def test_the_command_compares_and_writes(tmp_path: Path) -> None:
    for name in ("llm_trainer", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    agreed = run(cwd=tmp_path)
    assert (agreed.returncode, agreed.stdout) == (0, "dvc.yaml agrees with the code\n"), agreed
    before = (tmp_path / "dvc.yaml").read_bytes()
    assert run("--write", cwd=tmp_path).returncode == 0
    assert (tmp_path / "dvc.yaml").read_bytes() == before  # comments and layout included

    (tmp_path / "pipeline" / "extra.py").write_text("")
    stage = tmp_path / "pipeline" / "download.py"
    stage.write_text(f"import pipeline.extra\n{stage.read_text()}\nparams.packing.max_length\n")
    differs = run(cwd=tmp_path)
    assert differs.returncode == 2
    assert differs.stderr.splitlines() == [
        "error: dependencies: download: uses pipeline/extra.py, which deps lack",
        "error: dependencies: download: reads packing.max_length, which params lack",
    ]
    run("--write", cwd=tmp_path)
    deps = yaml.safe_load((tmp_path / "dvc.yaml").read_text())["stages"]["download"]["deps"]
    assert "pipeline/extra.py" in deps


def params_of(tmp_path: Path, code: str) -> list[str]:
    (tmp_path / "pipeline").mkdir(exist_ok=True)
    (tmp_path / "pipeline" / "stage.py").write_text(dedent(code))
    return stage_params("stage", tmp_path)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("f(params.model)", ["model"]),
        ("params.model.d_model + params.model.n_heads", ["model.d_model", "model.n_heads"]),
        ("params.model.d_model; f(params.model)", ["model"]),
        ("params.model.to_dict()", ["model"]),
        ("params.training.seed.bit_length()", ["training.seed"]),
        ("params.runtime.device; r = params.runtime", []),
        ("track(params.sections())", []),
        ("params = load_params()", []),
    ],
)
def test_reading_params(tmp_path: Path, code: str, expected: list[str]) -> None:
    assert params_of(tmp_path, code) == expected


def test_params_handed_on_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"stage\.py:2: hands on all params"):
        params_of(tmp_path, "\nf(params)")


# --------------------------------------------------------------------------- imports


def used(tmp_path: Path, files: dict[str, str], excluded: frozenset[str] = frozenset()) -> set[str]:
    for name, code in {"llm_trainer/__init__.py": "", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(code))
    found = ImportGraph(tmp_path).used_by("llm_trainer.start", excluded)
    return {name.removeprefix("llm_trainer.") for name in found} - {"llm_trainer"}


LAZY = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from llm_trainer.lazy.one import One
    from llm_trainer.lazy.two import Two
__all__ = ["One", "Two"]
def __getattr__(name):
    from importlib import import_module
    return getattr(import_module({"One": "llm_trainer.lazy.one"}[name]), name)
"""


def test_a_name_of_a_lazy_package_leads_to_its_own_module(tmp_path: Path) -> None:
    files = {
        "llm_trainer/start.py": "from llm_trainer.lazy import One",
        "llm_trainer/lazy/__init__.py": LAZY,
        "llm_trainer/lazy/one.py": "class One: ...",
        "llm_trainer/lazy/two.py": "class Two: ...",
    }
    assert used(tmp_path, files) == {"start", "lazy", "lazy.one"}


def test_an_eager_package_brings_all_that_it_imports(tmp_path: Path) -> None:
    files = {
        "llm_trainer/start.py": "from llm_trainer.eager import One",
        "llm_trainer/eager/__init__.py": """
            from llm_trainer.eager.one import One
            from llm_trainer.eager.two import Two
        """,
        "llm_trainer/eager/one.py": "class One: ...",
        "llm_trainer/eager/two.py": "class Two: ...",
    }
    assert used(tmp_path, files) == {"start", "eager", "eager.one", "eager.two"}


def test_a_submodule_is_a_name_of_its_package(tmp_path: Path) -> None:
    files = {
        "llm_trainer/start.py": "from llm_trainer.lazy import two as second\nimport numpy as np",
        "llm_trainer/lazy/__init__.py": LAZY,
        "llm_trainer/lazy/one.py": "",
        "llm_trainer/lazy/two.py": "import llm_trainer.other",
        "llm_trainer/other.py": "",
    }
    assert used(tmp_path, files) == {"start", "lazy", "lazy.two", "other"}


def test_imports_in_functions_count_if_the_function_can_be_called(tmp_path: Path) -> None:
    files = {
        "llm_trainer/start.py": """
            from llm_trainer.tools import Tool
            def main():
                from llm_trainer.called import run
                Tool().work()
                getattr(Tool, "by_name")
            main()
        """,
        "llm_trainer/called.py": "def run(): ...",
        "llm_trainer/tools.py": """
            class Tool:
                def __init__(self):
                    import llm_trainer.dunder
                def work(self):
                    self._helper
                @property
                def _helper(self):
                    import llm_trainer.helper
                def by_name(self):
                    import llm_trainer.named
                def never(self):
                    import llm_trainer.never
                    self.nor_this()
                def nor_this(self):
                    import llm_trainer.nor_this
        """,
        **{f"llm_trainer/{n}.py": "" for n in ("dunder", "helper", "named", "never", "nor_this")},
    }
    assert used(tmp_path, files) == {"start", "called", "tools", "dunder", "helper", "named"}


def test_a_function_met_before_its_name_is_mentioned(tmp_path: Path) -> None:
    """The order in which modules are read makes no difference."""
    files = {
        "llm_trainer/start.py": "import llm_trainer.first\nimport llm_trainer.second",
        "llm_trainer/first.py": "def late():\n    import llm_trainer.third",
        "llm_trainer/second.py": "def main():\n    late()\nmain()",
        "llm_trainer/third.py": "",
    }
    assert used(tmp_path, files) == {"start", "first", "second", "third"}


@pytest.mark.parametrize(
    ("start", "called"),
    [
        ("from llm_trainer.tools import f", False),
        ("from llm_trainer.tools import f\nf()", True),
        ("from llm_trainer.tools import f\ntable = {'f': f}", True),
        ("from llm_trainer.tools import f as g\ng()", True),
        ("import llm_trainer.tools as t\nt.f()", True),
        ("import llm_trainer.tools\nllm_trainer.tools.f()", True),
        ("from llm_trainer import tools\ntools.f()", True),
        ("import llm_trainer.tools\ndef g(tool):\n    tool.f()\ng()", False),  # a method f
    ],
)
def test_a_function_that_is_only_imported_is_not_called(
    tmp_path: Path, start: str, called: bool
) -> None:
    files = {
        "llm_trainer/start.py": start,
        "llm_trainer/tools.py": "def f():\n    import llm_trainer.inner",
        "llm_trainer/inner.py": "",
    }
    assert used(tmp_path, files) == {"start", "tools"} | ({"inner"} if called else set())


def test_what_only_type_checkers_read_does_not_count(tmp_path: Path) -> None:
    files = {
        "llm_trainer/start.py": """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from llm_trainer.types import T
            def f():
                if TYPE_CHECKING:
                    from llm_trainer.types import U
            f()
        """,
        "llm_trainer/types.py": "",
    }
    assert used(tmp_path, files) == {"start"}


def test_an_excluded_package_is_not_followed(tmp_path: Path) -> None:
    files = {
        "llm_trainer/start.py": "from llm_trainer.shown import x",
        "llm_trainer/shown/__init__.py": "from llm_trainer.shown.inner import x",
        "llm_trainer/shown/inner.py": "import llm_trainer.other\nx = 1",
        "llm_trainer/other.py": "",
    }
    assert used(tmp_path, files, frozenset({"llm_trainer.shown"})) == {"start"}


@pytest.mark.parametrize(
    "code",
    ["from llm_trainer.none import x", "from llm_trainer.lazy import Three"],
)
def test_an_import_that_leads_nowhere_is_an_error(tmp_path: Path, code: str) -> None:
    files = {
        "llm_trainer/start.py": code,
        "llm_trainer/lazy/__init__.py": LAZY,
        "llm_trainer/lazy/one.py": "",
        "llm_trainer/lazy/two.py": "",
    }
    with pytest.raises(UnresolvedImportError, match=r"no module|cannot tell where"):
        used(tmp_path, files)


def test_reading_agrees_with_what_python_loads() -> None:
    """An independent look: import a module in a fresh process; everything loaded was found."""
    code = (
        "import sys, llm_trainer.data.raw\n"
        "print(*[m for m in sys.modules if m.partition('.')[0] == 'llm_trainer'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert set(done.stdout.split()) <= ImportGraph(ROOT).used_by("llm_trainer.data.raw")
