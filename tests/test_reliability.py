"""docs/reliability.md: each promise and fault names tests that run; its figures are the soak's."""

from __future__ import annotations

import ast
import importlib
import re

import pytest

from benchmarks.soak.rows import ROWS as SOAK
from docs import update_results
from llm_trainer.json_file import read_json
from tests.test_layers import ROOT

TEXT = (ROOT / update_results.RELIABILITY).read_text("utf-8")
FAULTS = {
    *(f"A{n}" for n in range(1, 15)), *(f"B{n}" for n in range(1, 10)),
    *(f"C{n}" for n in range(1, 5)),
    *(f"P{n}" for n in range(1, 5)),
}  # fmt: skip


def table(heading: str) -> list[str]:
    """The rows of the table under a heading."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][2:]


PROMISES, ROWS = table("What is promised"), table("Faults, and what happens")


@pytest.mark.parametrize("row", [*PROMISES, *ROWS], ids=lambda row: row[2:40])
def test_it_names_tests_that_exist(row: str) -> None:
    proofs = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
    assert proofs, "no test is named"
    for path, name in proofs:
        body = ast.parse((ROOT / path).read_bytes()).body
        functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{path}::{name}"
        assert name.startswith("test_")
        marks = ast.unparse(ast.Module(list(functions[name].decorator_list), []))
        assert "skip(" not in marks
        assert "xfail" not in marks


def test_all_ten_promises_and_all_faults_are_there() -> None:
    numbers = re.findall(r"^\| \*\*(\d+)\. ", "\n".join(PROMISES), re.MULTILINE)
    assert numbers == [str(n) for n in range(1, 11)]
    names = [row.split("|")[1].strip() for row in ROWS]
    assert len(names) == len(set(names))
    assert set(names) == FAULTS


def test_every_row_of_the_soak_is_a_fault_and_can_be_run() -> None:
    names = {re.sub(r"[a-z].*", "", name) for name in SOAK}  # A6a and A6-shards are of A6
    assert {name.partition("-")[0] for name in names} <= FAULTS
    for name, module in SOAK.items():
        assert importlib.import_module(module).ROW.name == name


def test_the_figures_are_those_of_the_last_soak() -> None:
    results = read_json(update_results.SOAK_RESULTS)
    assert update_results.with_soak(TEXT, results) == TEXT, "python -m docs.update_results"


def test_the_figures_by_hand() -> None:
    machine = {"cpu": "A CPU", "cores": 2, "cpu_capability": "AVX2", "os": "Linux x86_64",
               "torch": "2.13.0+cpu", "python": "3.11.7"}  # fmt: skip
    row = {"fault": "a kill", "counters": {"kills": 1200, "steps_lost": 0, "seconds": 61}}
    results = {"machine": machine, "rows": {"A1": {**row, "shortfalls": []},
                                            "A2": {**row, "shortfalls": ["no"]}}}  # fmt: skip
    made = update_results.with_soak("<!-- soak: start -->\n<!-- soak: end -->", results)
    assert "| A1 | a kill | kills: 1,200; steps lost: 0 | 61 |" in made
    assert "steps lost: 0 **Fell short: no.** | 61 |" in made
    assert "A CPU, 2 cores (AVX2)" in made
