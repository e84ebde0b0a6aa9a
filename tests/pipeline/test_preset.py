"""Presets: the committed ones, and how they are merged into params.yaml."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_trainer.config import Experiment, load_experiment
from llm_trainer.config.experiment import RUNTIME_ONLY
from llm_trainer.exceptions import ConfigurationError
from pipeline.preset import apply_preset, describe, preset_names
from pipeline.yaml_text import Value, read_values, set_values

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
NAMES = preset_names(CONFIGS)


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return shutil.copy(CONFIGS / "default.yaml", tmp_path / "params.yaml")


def expected_keys() -> dict[str, list[str]]:
    """Every field of every section, but for those that belong elsewhere."""
    elsewhere = {"training": set(RUNTIME_ONLY), "model": {"vocab_size"}}
    experiment = Experiment()
    return {
        section.name: [
            f.name
            for f in fields(getattr(experiment, section.name))
            if f.name not in elsewhere.get(section.name, set())
        ]
        for section in fields(Experiment)
    }


# --------------------------------------------------------------------------- the committed files


def test_params_yaml_is_the_default_preset() -> None:
    same = (ROOT / "params.yaml").read_bytes() == (CONFIGS / "default.yaml").read_bytes()
    assert same, "params.yaml was changed: cp params.yaml configs/default.yaml (or the reverse)"


@pytest.mark.parametrize("name", NAMES)
def test_a_merged_preset_holds_every_key_that_a_stage_can_read(name: str, params: Path) -> None:
    apply_preset(name, params, CONFIGS)
    values = read_values(params.read_text(), params)
    assert {section: list(keys) for section, keys in values.items()} == expected_keys()
    load_experiment(params)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_what_it_is(name: str) -> None:
    assert describe(name, CONFIGS).endswith(".")
    assert len(describe(name, CONFIGS)) > 40


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_ends_in_a_space(name: str, params: Path) -> None:
    """Words carry the space before them: a space alone is seldom followed by one."""
    apply_preset(name, params, CONFIGS)
    loaded = load_experiment(params)
    prompts = loaded.training.sample_prompts + loaded.evaluation.prompts
    assert prompts
    assert [prompt for prompt in prompts if prompt != prompt.rstrip()] == []


def test_every_key_of_params_yaml_has_a_comment() -> None:
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            assert "# " in line, line


# --------------------------------------------------------------------------- merging


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for pair in itertools.product(NAMES, ("default", "smoke")) if len(set(pair)) == 2],
)
def test_switching_to_and_fro_is_exact(first: str, second: str, params: Path) -> None:
    apply_preset(first, params, CONFIGS)
    straight = params.read_bytes()
    apply_preset(second, params, CONFIGS)
    assert params.read_bytes() != straight
    apply_preset(first, params, CONFIGS)
    assert params.read_bytes() == straight
    assert apply_preset(first, params, CONFIGS) == []


def test_comments_and_layout_of_the_user_stay(params: Path) -> None:
    text = params.read_text()
    text = text.replace("\nmodel:", "\n# my own note\n\nmodel:")
    text = re.sub(r"(?m)^  sample_prompts: .*$", '  sample_prompts:\n  - "a list"', text)
    params.write_text(re.sub(r"(?m)^  vocab_size: .{4}", "  vocab_size: 9999", text))
    changes = apply_preset("smoke", params, CONFIGS)
    assert "tokenizer.vocab_size: 9999 -> 512" in changes
    after = params.read_text()
    assert "\n# my own note\n\nmodel:" in after
    assert load_experiment(params).tokenizer.vocab_size == 512
    assert load_experiment(params).training.sample_prompts == ["def __init__(self"]
    # a comment behind a value keeps its column
    assert {line.index("# ") for line in after.splitlines() if line.startswith("  vocab")} == {39}


def test_a_dry_run_writes_nothing(params: Path) -> None:
    before = params.read_bytes()
    assert apply_preset("smoke", params, CONFIGS, dry_run=True)
    assert params.read_bytes() == before


def test_a_missing_file_or_key_is_filled_from_the_default(params: Path) -> None:
    lines = params.read_text().splitlines(keepends=True)
    params.write_text("".join(x for x in lines if "dropout" not in x))
    changes = apply_preset("default", params, CONFIGS)
    assert [change.partition(" -> ")[0] for change in changes] == [
        "model.dropout: (missing)", "model.attention_dropout: (missing)",
    ]  # fmt: skip
    default = load_experiment(CONFIGS / "default.yaml").model
    assert load_experiment(params).model == default
    params.unlink()
    apply_preset("default", params, CONFIGS)
    assert params.read_bytes() == (CONFIGS / "default.yaml").read_bytes()


def test_empty_values_as_dvc_writes_them_are_replaced(params: Path) -> None:
    """`dvc exp run -S` spells null as nothing."""
    params.write_text(params.read_text().replace("max_documents: null", "max_documents:     "))
    apply_preset("smoke", params, CONFIGS)
    assert load_experiment(params).data.max_documents == 40


def test_nothing_is_written_when_the_result_would_be_wrong(params: Path, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    configs.mkdir()
    shutil.copy(CONFIGS / "default.yaml", configs)
    (configs / "bad.yaml").write_text("# bad\nmodel:\n  n_heads: 5\n  lerning: 3\n")
    before = params.read_bytes()
    with pytest.raises(ConfigurationError, match="with preset 'bad'"):
        apply_preset("bad", params, configs)
    assert params.read_bytes() == before
    params.write_text(params.read_text() + "modle:\n  a: 1\n")
    with pytest.raises(ConfigurationError, match="did you mean 'model'"):
        apply_preset("smoke", params, CONFIGS)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.preset", *arguments],
        cwd=cwd, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_command(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    shutil.copy(CONFIGS / "default.yaml", tmp_path / "params.yaml")
    listed = run("--list", cwd=tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == NAMES
    shown = run("smoke", cwd=tmp_path)
    assert "training.max_steps: " in shown.stdout
    assert "next: make repro" in shown.stdout
    assert "already" in run("smoke", cwd=tmp_path).stdout
    wrong = run("smok", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: preset: no preset 'smok'; did you mean 'smoke'?")
    elsewhere = run("smoke", cwd=tmp_path / "configs")
    assert elsewhere.returncode == 2
    assert "give the command in the project's root" in elsewhere.stderr


# --------------------------------------------------------------------------- text editing

SCALARS = st.one_of(
    st.integers(), st.booleans(), st.none(), st.sampled_from(["a b", "", "x: y", "#", "- ", "é\n"]),
    st.lists(st.integers() | st.text(max_size=4), max_size=3),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from("abcdef"), SCALARS, min_size=1))
def test_values_set_are_values_read(values: dict[str, object]) -> None:
    import yaml

    text = (
        "# head\n\ns:   # note\n  a: 1   # one\n  b: [1, 2]\n  c:\n    - 1\n    # inner\n    - 2\n"
    )
    text += '  d: "x"      # dee\n\nt: # tail\n  a: 5\n  # end\n'
    path = Path("x.yaml")
    wanted = {
        key: Value(
            v, yaml.safe_dump(v, default_flow_style=True).removesuffix("\n...\n").strip(), 0, 0
        )
        for key, v in values.items()
    }
    after = set_values(text, path, {"s": wanted})
    found = {k: v.value for k, v in read_values(after, path)["s"].items()}
    assert found == {"a": 1, "b": [1, 2], "c": [1, 2], "d": "x"} | values
    assert read_values(after, path)["t"]["a"].value == 5
    assert after.startswith("# head\n\ns:   # note\n")
    assert after.endswith("\n\nt: # tail\n  a: 5\n  # end\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("s:\n  a:\n  - 1\n  - 2\n  b: 1\n", "s:\n  a: [3]\n  b: 1\n"),
        ("s:\n  a:\n    - 1\n    # two\n    - 2\n\n  b: 1\n", "s:\n  a: [3]\n\n  b: 1\n"),
        ("s:\n  a:     # all\n    - 1\n  b: 1 # x\n", "s:\n  a: [3] # all\n  b: 1 # x\n"),
        ("s:\n  a:\n    [1,\n     2]\n  b: 1\n", "s:\n  a: [3]\n  b: 1\n"),
        ("s:\n  a: |\n    text\n  b: 1\n", "s:\n  a: [3]\n  b: 1\n"),
        ("s:\n  a:\n  b: 1\n", "s:\n  a: [3]\n  b: 1\n"),
        ("s:\n  a:", "s:\n  a: [3]"),
        ("s:\n  a: 'x'   # é\n", "s:\n  a: [3] # é\n"),
    ],
)
def test_values_on_several_lines(before: str, after: str) -> None:
    found = set_values(before, Path("x.yaml"), {"s": {"a": Value([3], "[3]", 0, 0)}})
    assert found.split() == after.split()
    assert read_values(found, Path("x.yaml"))["s"]["a"].value == [3]


@pytest.mark.parametrize("value", [["def "], [], ["a", "b"], [1], {"a": 1}])
@pytest.mark.parametrize("flow", [True, False])
def test_a_value_is_spelled_so_that_it_fits_behind_its_key(value: object, flow: bool) -> None:
    import yaml

    text = yaml.safe_dump({"s": {"a": value, "b": 1}}, default_flow_style=False)
    if flow:
        text = f"s:\n  a: {json.dumps(value)}\n  b: 1\n"
    spelled = read_values(text, Path("x.yaml"))["s"]["a"].text
    assert yaml.safe_load(f"a: {spelled}") == {"a": value}


def test_new_keys_and_sections_come_in_order() -> None:
    path = Path("x.yaml")
    wanted = {"s": {k: Value(1, "1", 0, 0) for k in "xy"}, "n": {"z": Value(2, "2", 0, 0)}}
    assert set_values("s:\n  a: 1 # c\nt:\n  b: 1\n", path, wanted) == (
        "s:\n  a: 1 # c\n  x: 1\n  y: 1\nt:\n  b: 1\n\nn:\n  z: 2\n"
    )
