"""Nonsense for models, sampling and generation."""

from __future__ import annotations

import torch
from torch import nn

from llm_trainer.config import ModelConfig
from llm_trainer.models import KVCache, TransformerLM, sampling
from llm_trainer.models.decoding import generate
from llm_trainer.utils.generation import TextGenerator
from llm_trainer.utils.inference import InferenceEngine
from llm_trainer.utils.loading import load_model_and_tokenizer
from tests.errors.nonsense import (
    CALLABLE,
    CHOICE,
    COUNT,
    DEVICE,
    FLAG,
    FOLDER,
    IDS,
    NAN,
    NEW_FOLDER,
    NUMBER,
    OBJECT,
    POSITIVE,
    SIZE,
    SOME_TEXTS,
    TENSOR,
    TEXT,
    Entry,
    maybe,
)

TOO_LONG = torch.zeros(1, 33, dtype=torch.long)
"""Of a model that takes 32 tokens."""
MASKS = (*maybe(TENSOR), torch.ones(1, 4), torch.ones(3))
"""For ids of shape (1, 3)."""
ONES = torch.ones(1, 3, dtype=torch.long)
TINY = ModelConfig(vocab_size=300, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_seq_len=32)
LOGITS = (*TENSOR, torch.full((1, 300), NAN))
GENERATION = {"config": (*maybe(OBJECT), {"temperature": 1.0})}
PROMPT = (*TEXT, "\ud800")
PROMPTS = (*SOME_TEXTS, ["\ud800"])

ENTRIES = [
    Entry(
        "llm_trainer.models:TransformerLM", lambda w: TransformerLM, lambda w: {"config": TINY},
        {"config": (*OBJECT, {"d_model": 8}, TransformerLM)},
    ),
    Entry(
        "llm_trainer.models:TransformerLM.initialize", lambda w: TransformerLM(TINY).initialize,
        lambda w: {}, {"generator": ("text", 3)},
    ),
    Entry(
        "llm_trainer.models:TransformerLM.forward", lambda w: w.model,
        lambda w: {"input_ids": w.ids},
        {
            "input_ids": (*IDS, TOO_LONG), "attention_mask": MASKS,
            "labels": (
                *maybe(TENSOR), ONES[:, :2], ONES.float(), torch.full((1, 3), 300),
                torch.full((1, 3), -5),
            ),
            "segments": (*maybe(TENSOR), ONES[:, :2]), "cache": ("text", 3),
        },
        cases=(
            (
                lambda w: {"cache": KVCache(w.shape, 1, 2)},
                ("cache", "2", "3"),
            ),
            (
                lambda w: {"cache": KVCache(w.shape, 2, 8)},
                ("cache", "2", "1"),
            ),
            (
                lambda w: {"segments": ONES, "attention_mask": ONES},
                ("segments", "attention_mask"),
            ),
        ),
    ),
    Entry(
        "llm_trainer.models:TransformerLM.generate", lambda w: w.model.generate,
        lambda w: {"input_ids": w.ids, "max_length": 5},
        {
            "input_ids": IDS, "max_length": COUNT, "attention_mask": MASKS, "streamer": CALLABLE,
        },
        cases=(
            ({"max_length": 3}, ("max_length (3)", "3 tokens", "max_new_tokens")),
            ({"temprature": 1.0}, ("temprature", "did you mean 'temperature'")),
            ({"top_p": 0.0}, ("top_p", "0.0")),
            ({"end_id": 300}, ("end_id (300)", "vocab_size (300)")),
            ({"stop": ["x"]}, ("stop", "TextGenerator")),
            ({"num_beams": 2, "streamer": print}, ("num_beams (2)", "streamer")),
        ),
    ),
    Entry(
        "llm_trainer.models:TransformerLM.save_pretrained", lambda w: w.model.save_pretrained,
        lambda w: {"save_directory": "models/again"},
        {"save_directory": (*NEW_FOLDER, "folder")},
    ),
    Entry(
        "llm_trainer.models:TransformerLM.from_pretrained", lambda w: TransformerLM.from_pretrained,
        lambda w: {"load_directory": "models/final"},
        {
            "load_directory": (*FOLDER, "models/tokenizer", "checkpoints/checkpoint-1"),
            "device": (*DEVICE, None, "cuda:99"),
        },
    ),
    Entry(
        "llm_trainer.models:TransformerLM.set_attention_kernel",
        lambda w: TransformerLM(TINY).set_attention_kernel, lambda w: {"kernel": "sdpa"},
        {"kernel": CHOICE},
    ),
    Entry(
        "llm_trainer.models:KVCache", lambda w: KVCache,
        lambda w: {"config": TINY, "batch_size": 1, "max_length": 4},
        {
            "config": OBJECT, "batch_size": COUNT, "max_length": COUNT, "dtype": (3, "float", None),
            "device": DEVICE, "static": FLAG,
        },
    ),
    Entry(
        "llm_trainer.models.decoding:generate", lambda w: generate,
        lambda w: {"model": w.model, "input_ids": w.ids},
        {
            "model": (*OBJECT, nn.Linear(2, 2)), "input_ids": IDS, "attention_mask": MASKS,
            **GENERATION, "streamer": CALLABLE, "make_runner": CALLABLE,
        },
    ),
    Entry(
        "llm_trainer.models.sampling:sample_top_k", lambda w: sampling.sample_top_k,
        lambda w: {"logits": w.logits, "k": 3}, {"logits": LOGITS, "k": COUNT},
    ),
    Entry(
        "llm_trainer.models.sampling:sample_top_p", lambda w: sampling.sample_top_p,
        lambda w: {"logits": w.logits, "p": 0.5}, {"logits": LOGITS, "p": (*NUMBER, -0.1, 1.1)},
    ),
    Entry(
        "llm_trainer.models.sampling:apply_temperature", lambda w: sampling.apply_temperature,
        lambda w: {"logits": w.logits, "temperature": 0.5},
        {"logits": LOGITS, "temperature": POSITIVE},
    ),
    Entry(
        "llm_trainer.models.sampling:apply_repetition_penalty",
        lambda w: sampling.apply_repetition_penalty,
        lambda w: {"logits": w.logits, "input_ids": w.ids, "penalty": 1.1},
        {
            "logits": LOGITS, "penalty": POSITIVE, "attention_mask": MASKS,
            "input_ids": (
                *TENSOR, torch.full((1, 3), -1), torch.full((1, 3), 300), torch.ones(2, 3).long(),
                torch.ones(1, 3),
            ),
        },
    ),
    Entry(
        "llm_trainer.models.sampling:create_causal_mask", lambda w: sampling.create_causal_mask,
        lambda w: {"size": 3}, {"size": COUNT, "device": DEVICE},
    ),
    Entry(
        "llm_trainer.utils.loading:load_model_and_tokenizer", lambda w: load_model_and_tokenizer,
        lambda w: {"path": "models/final", "device": "cpu"},
        {
            "path": (*FOLDER, "models/tokenizer"), "device": (*DEVICE, None, "cuda:99"),
            "tokenizer_path": maybe(FOLDER),
        },
    ),
    Entry(
        "llm_trainer.utils.generation:TextGenerator", lambda w: TextGenerator,
        lambda w: {"model": w.model, "tokenizer": w.tokenizer},
        {
            "model": (*OBJECT, nn.Linear(2, 2)), "tokenizer": OBJECT, "device": DEVICE,
            "make_runner": CALLABLE,
        },
        cases=((lambda w: {"tokenizer": w.untrained}, ("not trained", "train")),),
    ),
    Entry(
        "llm_trainer.utils.generation:TextGenerator.generate", lambda w: w.generator.generate,
        lambda w: {"prompt": "def"}, {"prompt": PROMPT, **GENERATION, "on_text": CALLABLE},
    ),
    Entry(
        "llm_trainer.utils.generation:TextGenerator.batch_generate",
        lambda w: w.generator.batch_generate, lambda w: {"prompts": ["def", "a"]},
        {"prompts": PROMPTS, **GENERATION, "on_text": CALLABLE},
    ),
    Entry(
        "llm_trainer.utils.generation:TextGenerator.complete", lambda w: w.generator.complete,
        lambda w: {"prompts": ["def"]}, {"prompts": PROMPTS, **GENERATION, "on_text": CALLABLE},
    ),
    Entry(
        "llm_trainer.utils.generation:TextGenerator.continue_ids",
        lambda w: w.generator.continue_ids,
        lambda w: {"prompts": ["def"], "config": _settings()},
        {"prompts": PROMPTS, "config": OBJECT, "streamer": CALLABLE},
    ),
    Entry(
        "llm_trainer.utils.generation:TextGenerator.interactive_generate",
        lambda w: w.generator.interactive_generate, lambda w: {"read": _end},
        {**GENERATION, "read": CALLABLE, "output": CALLABLE},
    ),
    Entry(
        "llm_trainer.utils.inference:InferenceEngine", lambda w: InferenceEngine,
        lambda w: {"model": w.model, "tokenizer": w.tokenizer},
        {"model": (*OBJECT, nn.Linear(2, 2)), "tokenizer": OBJECT, "device": DEVICE},
        cases=((lambda w: {"tokenizer": w.untrained}, ("not trained", "train")),),
    ),
    Entry(
        "llm_trainer.utils.inference:InferenceEngine.optimize", lambda w: w.engine.optimize,
        lambda w: {},
        {
            "enable_kv_cache": FLAG, "compile_model": FLAG, "quantize": FLAG,
            "dtype": ("float", 3, torch.bfloat16, torch.int8),
        },
        cases=(
            (
                {"enable_kv_cache": False, "compile_model": True},
                ("compile_model (True)", "enable_kv_cache (False)"),
            ),
            ({"dtype": "bfloat16", "quantize": True}, ("dtype ('bfloat16')", "quantize (True)")),
        ),
    ),
    Entry(
        "llm_trainer.utils.inference:InferenceEngine.infer", lambda w: w.engine.infer,
        lambda w: {"prompt": "def", "max_new_tokens": 2}, {"prompt": PROMPT},
        cases=(
            ({"temprature": 1.0}, ("temprature", "did you mean 'temperature'")),
            ({"max_new_tokens": None, "max_length": 1}, ("max_length (1)", "raise it")),
            ({"top_k": 0}, ("top_k (0)",)),
        ),
    ),
    Entry(
        "llm_trainer.utils.inference:InferenceEngine.batch_infer", lambda w: w.engine.batch_infer,
        lambda w: {"prompts": ["def"], "max_new_tokens": 2}, {"prompts": PROMPTS},
        cases=(({"num_beams": 0}, ("num_beams (0)",)),),
    ),
    Entry(
        "llm_trainer.utils.inference:InferenceEngine.benchmark", lambda w: w.engine.benchmark,
        lambda w: {"prompts": ["def"], "num_runs": 1, "max_new_tokens": 2},
        {"prompts": PROMPTS, "num_runs": COUNT, "max_new_tokens": COUNT, "warmup_runs": SIZE},
    ),
]  # fmt: skip


def _settings() -> object:
    from llm_trainer.config.generation import GenerationConfig

    return GenerationConfig(max_new_tokens=2)


def _end(sign: str) -> str:
    raise EOFError
