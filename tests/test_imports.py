"""Every module imports, and what a person types answers before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layers import HEAVY, ROOT, modules

COMMANDS = [
    "llm_trainer.export --help",
    "pipeline.check --help",
    "pipeline.dependencies --help",
    "pipeline.gc --help",
    "pipeline.lineage --help",
    "pipeline.preset --help",
    "pipeline.preset --list",
    "pipeline.summary --help",
    "pipeline.track --help",
    "pipeline.ui --help",
    *(f"scripts/{path.name} --help" for path in sorted((ROOT / "scripts").glob("*.py"))),
]

RUN_AND_TELL = """
import json, runpy, sys
heavy, target, *sys.argv[1:] = sys.argv[1:]
status = 0
try:
    if target.endswith(".py"):
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
except SystemExit as error:
    status = error.code or 0
print()
print(json.dumps([status, [name for name in heavy.split() if name in sys.modules]]))
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports() -> None:
    """In one process, so that it costs seconds; what it prints is the failure."""
    code = (
        "import importlib, sys, traceback\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except BaseException: print(name); traceback.print_exc(file=sys.stdout)\n"
    )
    assert python(code, *modules()) == ""


@pytest.mark.parametrize("package", ["llm_trainer", "llm_trainer.config", "pipeline.params"])
def test_light_packages_load_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code) == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_answer_before_anything_heavy_is_loaded(command: str) -> None:
    printed = python(RUN_AND_TELL, " ".join(HEAVY), *command.split())
    assert json.loads(printed.rstrip().rpartition("\n")[2]) == [0, []]


def test_an_interpreter_without_the_packages_says_so_in_one_line() -> None:
    """`-S` leaves out site-packages, `-E` whatever the environment points to."""
    command = [sys.executable, "-S", "-E", "-m", "pipeline.download"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "lacks the packages" in done.stderr
    assert "make repro" in done.stderr


def test_packing_looks_for_no_heavy_package(tmp_path: Path) -> None:
    """pandas alone, which Arrow asks for by itself, would double the start of each process."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from llm_trainer.config import PackingConfig, SourceConfig\n"
        "from llm_trainer.data.packing import pack_corpus\n"
        "from llm_trainer.data.raw import RawCorpus, build_raw\n"
        "from llm_trainer.tokenizer import BPETokenizer\n"
        "Path('t').mkdir()\n"
        "texts = [f'def f{n}(): return {n}\\n' * 30 for n in range(40)]\n"
        "for n, text in enumerate(texts): Path(f't/{n:02}.txt').write_text(text)\n"
        "build_raw(SourceConfig(train_file='t', validation_fraction=0.1), 'raw', progress=False)\n"
        "tokenizer = BPETokenizer()\n"
        "tokenizer.train(texts, vocab_size=300)\n"
        "pack_corpus(RawCorpus('raw'), tokenizer, PackingConfig(max_length=32), 'packed',\n"
        "            num_workers=1, progress=False)\n"
        "heavy = ('torch', 'ray', 'fsspec', 'datasets', 'pandas', 'transformers', 'mlflow')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr
