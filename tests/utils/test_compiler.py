"""What `compile_model: auto` decides, and compiling on a machine without openssl."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch._inductor import config

from llm_trainer.utils.compiler import do_without_openssl, is_to_be_compiled


@pytest.mark.parametrize(
    ("compile_model", "device", "flops", "expected"),
    [
        (True, "cpu", 1.0, True),
        (False, "cpu", 1e30, False),
        ("auto", "cpu", 1.9e13, False),
        ("auto", "cpu", 2e13, True),
        ("auto", "cuda", 2e13, False),
        ("auto", "mps", 1e30, False),
    ],
)
def test_auto_compiles_what_repays_it(
    compile_model: object, device: str, flops: float, expected: bool
) -> None:
    assert is_to_be_compiled(compile_model, device, flops) is expected


def test_without_openssl_headers_are_not_precompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch would call it, and end in a FileNotFoundError."""
    with config.patch(cpp_cache_precompile_headers=True):
        (tmp_path / "openssl").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        do_without_openssl()
        assert config.cpp_cache_precompile_headers
        (tmp_path / "openssl").unlink()
        do_without_openssl()
        assert not config.cpp_cache_precompile_headers
