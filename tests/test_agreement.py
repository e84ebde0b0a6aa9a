"""docs/design/agreement.md names the proof of each claim: the tests are there, and run."""

from __future__ import annotations

import ast
import re

import pytest

from tests.test_layers import ROOT

PAGE = ROOT / "docs" / "design" / "agreement.md"
ROWS = [
    line
    for line in PAGE.read_text("utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| Claim", "| ---"))
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_a_claim_names_tests_that_exist(row: str) -> None:
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


def test_the_page_has_the_claims() -> None:
    assert len(ROWS) > 25
