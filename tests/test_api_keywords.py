"""Functions of the API reference that take any keyword: each one is read, or refused."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.exceptions import GenerationError
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer
from llm_trainer.utils.inference import InferenceEngine
from tests.test_api_contract import SIGNATURES, resolve
from tests.test_layers import ROOT

VOCABULARY = "some words to make a vocabulary of, and a few more words"


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    made = BPETokenizer()
    made.train([VOCABULARY] * 3, vocab_size=270)
    return made


@pytest.fixture(scope="module")
def model(tokenizer: BPETokenizer) -> TransformerLM:
    return TransformerLM(
        ModelConfig(
            vocab_size=tokenizer.vocab_size, d_model=8, n_heads=2, n_layers=1, d_ff=8,
            max_seq_len=32,
        )
    )  # fmt: skip


def takers(model: TransformerLM, tokenizer: BPETokenizer) -> dict[str, Callable[..., Any]]:
    """Every public function of the reference that takes keywords by `**kwargs`."""
    engine = InferenceEngine(model, tokenizer)
    trainer = Trainer(model, tokenizer, TrainingConfig())
    ids = torch.tensor([tokenizer.encode("some words", add_special_tokens=False)])
    return {
        "TransformerLM.generate": lambda **k: model.generate(ids, max_length=8, **k),
        "InferenceEngine.infer": lambda **k: engine.infer("some", max_length=8, **k),
        "InferenceEngine.batch_infer": lambda **k: engine.batch_infer(["some"], max_length=8, **k),
        "Trainer.generate_text": lambda **k: trainer.generate_text("some", max_length=8, **k),
    }


def parameters_of(name: str) -> list[inspect.Parameter]:
    return list(inspect.signature(resolve(name)).parameters.values())


def test_these_are_all_that_take_any_keyword(model: TransformerLM, tokenizer: BPETokenizer) -> None:
    found = {
        name.rpartition(":")[2]
        for name in SIGNATURES
        if any(
            p.kind is p.VAR_KEYWORD for p in inspect.signature(resolve(name)).parameters.values()
        )
    }
    assert found == set(takers(model, tokenizer))


@pytest.mark.parametrize(
    "taker",
    [
        "TransformerLM.generate", "InferenceEngine.infer", "InferenceEngine.batch_infer",
        "Trainer.generate_text",
    ],
)  # fmt: skip
def test_keywords_are_read_and_unknown_ones_refused(
    model: TransformerLM, tokenizer: BPETokenizer, taker: str
) -> None:
    call = takers(model, tokenizer)[taker]
    known: dict[str, Any] = {
        "temperature": 0.7, "top_k": 5, "top_p": 0.9, "do_sample": True, "num_beams": 2,
        "repetition_penalty": 1.1, "seed": 1,
    }  # fmt: skip
    for name, value in known.items():
        call(**{name: value})
    with pytest.raises(GenerationError, match="did you mean 'temperature'"):
        call(temprature=0.7)
    for name, value in {"temperature": -1.0, "top_k": 0, "top_p": 2.0, "num_beams": 0}.items():
        with pytest.raises(GenerationError, match=name):
            call(**{name: value})


def test_no_function_has_keywords_that_it_does_not_read() -> None:
    for package in ("llm_trainer", "pipeline", "scripts"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if not isinstance(node, ast.FunctionDef) or node.args.kwarg is None:
                    continue
                name = node.args.kwarg.arg
                used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                assert name in used, f"{path}:{node.lineno}: {node.name} swallows **{name}"
