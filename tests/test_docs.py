"""The documentation names what exists: links, files, commands, keys, examples, tables, the tree."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docs import update_results
from llm_trainer.files import write_json
from tests.pipeline.small_project import make_project

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = ("data", "models", "metrics", "plots", "site", "runs")
"""Folders that running the pipeline makes or fills."""
FOLDERS = ("llm_trainer", "pipeline", "configs", "docs", "examples", "scripts", "tests", ".ci")
SECTIONS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
IS_COMMITTED = (ROOT / "metrics" / "evaluate.json").is_file()
"""Whether the default run is there; its table and pictures come with it."""

page = pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.S)


def prose(path: Path) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.S)


def commands(path: Path) -> Iterator[list[str]]:
    """The commands of the shell blocks, in words, and those in the text that look like one."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words
    for line in re.findall(
        r"`((?:make|dvc|python -m|python scripts/[a-z]+.py) [^`]+)`", prose(path)
    ):
        yield shlex.split(line)


def tracked() -> list[str]:
    """Files that git knows; the tests also run where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode or not listed.stdout:
        pytest.skip("no git repository")
    return listed.stdout.splitlines()


# --------------------------------------------------------------------------- what is named


@page
def test_relative_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if target.startswith(("http", "#")):
            continue
        file = path.parent / target.partition("#")[0]
        if file.suffix == ".png" and not IS_COMMITTED:
            continue
        assert file.exists(), target


@page
def test_named_files_exist(path: Path) -> None:
    for name in re.findall(r"`([\w./*-]+/[\w./*-]*)`", prose(path)):
        first = name.partition("/")[0]
        if first in FOLDERS and "*" not in name:
            assert (ROOT / name).exists(), name
        elif first in ("metrics", "plots") and name.count(".") == 1 and "<" not in name:
            assert name in known_outputs(), name


def known_outputs() -> set[str]:
    """Figures, curves and samples that stages write."""
    source = "".join(
        (ROOT / "pipeline" / name).read_text("utf-8")
        for name in ("paths.py", "evaluate.py")
    )  # fmt: skip
    names = set(re.findall(r'METRICS / "([\w.]+)"', source))
    found = {f"metrics/{name}" for name in names} | set(re.findall(r'"(plots/[\w.]+)"', source))
    samples = re.findall(r'directory / "([\w.]+)"', source)
    return found | {f"plots/samples/{name}" for name in samples}


@page
def test_named_keys_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    named = re.findall(r"`(\w+)\.(\w+)(?:: [^`]*)?`", prose(path))
    named += re.findall(r"(?:-S|--set) '?(\w+)\.(\w+)=", text)
    for section, key in named:
        if section in SECTIONS and key not in ("json", "yaml"):
            assert key in SECTIONS[section], f"{section}.{key}"
    for block in blocks(path, "yaml"):
        for section, values in yaml.safe_load(block).items():
            library = "training" in yaml.safe_load(block)
            for key in values:
                assert library or key in SECTIONS[section], f"{section}.{key}"


@page
def test_commands_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for words in commands(path):
        shown = " ".join(words)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), shown
        elif words[:2] == ["python", "-m"]:
            check_module(words[2], words[3:], shown)
        elif words[0] == "python":
            check_script(words[1], words[2:], shown)
        elif words[0] == "dvc":
            check_dvc(words[1:], shown)
        elif words[0] in ("sbatch", "kubectl", "torchrun"):
            (file,) = [word for word in words if word.endswith((".sbatch", "job.yaml", ".py"))]
            assert (ROOT / file).is_file(), shown
        else:
            assert words[0] in ("git", ".", "tensorboard", "pip"), shown


def check_module(name: str, arguments: list[str], shown: str) -> None:
    if name.partition(".")[0] not in ("pipeline", "llm_trainer", "docs"):
        return
    path = name.replace(".", "/")
    is_package = (ROOT / path / "__main__.py").is_file()
    check_script(f"{path}/__main__.py" if is_package else f"{path}.py", arguments, shown)


def check_script(name: str, arguments: list[str], shown: str) -> None:
    source = ROOT / name
    assert source.is_file(), shown
    for flag in arguments:
        if flag.startswith("--"):
            assert f'"{flag}"' in source.read_text("utf-8"), shown


def check_dvc(arguments: list[str], shown: str) -> None:
    from dvc.cli.parser import get_main_parser

    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    if len(arguments) == 1 and arguments[0] in ("exp", "queue", "plots"):
        return  # the name of a group of commands
    try:
        get_main_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"dvc refuses: {shown}")
    except Exception as error:  # noqa: BLE001 - dvc's own kinds
        pytest.fail(f"dvc refuses: {shown} ({error})")


# --------------------------------------------------------------------------- what is shown


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the examples read."""
    path = make_project(tmp_path_factory.mktemp("examples") / "project")
    (path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return path


def test_python_examples_run(project: Path) -> None:
    """Those of a page one after the other, as a reader would; all pages in one process."""
    pages = {str(path.relative_to(ROOT)): "\n".join(blocks(path, "python")) for path in PAGES}
    (project / "pages.json").write_text(json.dumps(pages))
    run = (
        "import json\n"
        "for name, text in json.load(open('pages.json')).items():\n"
        "    exec(compile(text, name, 'exec'), {'__name__': 'example'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=project, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_generated_tables_are_those_of_the_code() -> None:
    path = ROOT / update_results.CONFIGURATION
    text = path.read_text("utf-8")
    assert update_results.with_configuration(text) == text, "python -m docs.update_results"


@pytest.mark.skipif(not IS_COMMITTED, reason="the default run is not committed yet")
def test_the_table_of_results_is_that_of_the_metrics() -> None:
    changed = ["git", "diff", "--quiet", "HEAD", "--", "metrics"]
    if subprocess.run(changed, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("the figures here are not the committed ones")
    text = (ROOT / "README.md").read_text("utf-8")
    wanted = update_results.with_results(text, ROOT / "metrics")
    assert wanted == text, "python -m docs.update_results"


def test_the_table_of_results_by_hand(tmp_path: Path) -> None:
    figures = {
        "download": {"dataset_name": "python-stdlib", "python_version": "3.11.7",
                     "train_bytes": 11_400_000, "train_documents": 580,
                     "validation_bytes": 392_195, "validation_documents": 28},
        "tokenizer": {"vocab_size": 4096, "bytes_per_token": 3.456},
        "packing": {"train_tokens": 3_400_000},
        "train": {"parameters": 3_344_064, "steps": 1300, "tokens": 2_662_400, "seconds": 240.4,
                  "tokens_per_second": 11_075},
        "evaluate": {"bits_per_byte": 1.2345, "bits_per_byte_low": 1.2, "bits_per_byte_high": 1.27,
                     "confidence": 0.95, "loss": 3.1, "perplexity": 22.198, "leak_bytes_share": 0.0,
                     "leak_equal_documents": 0, "leak_near_documents": 1},
        "benchmark": {"training_step_ms": 151.2, "training_peak_share": 0.516,
                      "training_dtype": "bfloat16", "machine_cpu": "A CPU", "machine_cores": 2,
                      "machine_gpu": "none", "machine_torch": "2.13.0+cpu",
                      "machine_python": "3.11.7", "generate_batch_1_tokens_per_second": 401.4,
                      "generate_batch_1_uncached_tokens_per_second": 99.6},
    }  # fmt: skip
    for name, values in figures.items():
        write_json(tmp_path / f"{name}.json", values)
    text = "before\n<!-- results: start -->\nold\n<!-- results: end -->\nafter\n"
    made = update_results.with_results(text, tmp_path)
    assert made.startswith("before\n<!-- results: start -->\n| What | Figure |\n| --- | --- |\n")
    assert made.endswith("\n<!-- results: end -->\nafter\n")
    for line in (
        "| Text | python-stdlib of Python 3.11.7: 11.4 MB in 580 documents to train on, 0.39 MB in "
        "28 to validate on |",
        "| **Validation** | **1.234 bits per byte** (95% interval 1.200 to 1.270) |",
        "| Machine | A CPU, 2 cores; torch 2.13.0, Python 3.11.7 |",
    ):
        assert line in made.splitlines(), made
    assert update_results.with_results(made, tmp_path) == made
    del figures["train"]["seconds"]
    write_json(tmp_path / "train.json", figures["train"])
    with pytest.raises(update_results.UpdateError, match="'seconds' is missing"):
        update_results.with_results(text, tmp_path)
    with pytest.raises(update_results.UpdateError, match="markers"):
        update_results.replaced("no markers", "results", "")


def test_the_tree_is_the_real_one() -> None:
    """Folders as deep as the tree shows them; files at the top that it names exist."""
    (tree,) = (b for b in blocks(ROOT / "README.md", "text") if b.startswith(".ci/"))
    named, parents = set(), [""]
    for line in tree.splitlines():
        entry = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth + 1 :] = [parents[depth] + entry]
        if entry.endswith("/"):
            named.add(parents[depth + 1])
        else:
            assert (ROOT / entry).is_file(), entry
    folders = {f"{Path(name).parent.as_posix()}/" for name in tracked() if "/" in name}
    real = {f for f in folders if f.startswith("llm_trainer/")} | {
        f"{f.partition('/')[0]}/" for f in folders
    }
    made = {f"{name}/" for name in MADE}
    assert named - made == real - made


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet",
         "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 15
    for made in pages:
        text = made.read_text("utf-8")
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", text)
        assert loaded == [], f"{made.name} loads {loaded}"
    assert not list((tmp_path / "site").rglob("*.py"))
