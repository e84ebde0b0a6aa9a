"""Models without values have the names, shapes and types of real ones, and cost no start-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_trainer.config import ModelConfig
from llm_trainer.models.outline import outline
from llm_trainer.models.transformer import TransformerLM
from tests.test_layers import ROOT

SIZES = {"vocab_size": 300, "d_model": 32, "n_heads": 2, "n_layers": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "qk_norm": True},
        {"position": "learned", "norm": "layernorm", "bias": True, "tie_embeddings": True},
        {"position": "sinusoidal", "pre_norm": False},
    ],
)
def test_tensors_are_those_of_a_real_model(changes: dict[str, Any]) -> None:
    config = ModelConfig(**SIZES, **changes)
    real, without = TransformerLM(config), outline(TransformerLM, config)
    for kind in ("named_parameters", "named_buffers"):
        expected = {name: (t.shape, t.dtype) for name, t in getattr(real, kind)()}
        found = dict(getattr(without, kind)())
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == expected
        assert all(tensor.is_meta for tensor in found.values())
    assert (without.head.weight is without.embedding.weight) == config.tie_embeddings


def test_no_memory_is_taken() -> None:
    """Tables of positions included: 4 GB here, were they real."""
    model = outline(TransformerLM, ModelConfig(**SIZES | {"d_model": 128}, max_seq_len=2**24))
    assert model.rope_cos.shape == (2**24, 32)


def test_opening_a_model_does_not_load_the_compiler(tmp_path: Path) -> None:
    torch.manual_seed(0)
    TransformerLM(ModelConfig(**SIZES)).save_pretrained(tmp_path / "model")
    code = (
        "import sys; from llm_trainer.models import TransformerLM; "
        f"TransformerLM.from_pretrained({str(tmp_path / 'model')!r}); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
