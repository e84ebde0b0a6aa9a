"""Nonsense for the configuration classes: the kinds follow from the annotations of the fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from llm_trainer.config import (
    BenchmarkConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PackingConfig,
    RuntimeConfig,
    SourceConfig,
    TokenizerConfig,
    TrainingConfig,
    load_experiment,
)
from llm_trainer.config.generation import GenerationConfig
from llm_trainer.config.loader import field_types
from tests.errors.nonsense import (
    CHOICE,
    COUNT,
    FILE,
    FLAG,
    HUGE,
    MAPPING,
    NEW_FILE,
    NUMBER,
    SOME_TEXTS,
    TEXT,
    TEXTS,
    WHOLE,
    Entry,
    Kind,
    maybe,
    without,
)

CLASSES = (
    ModelConfig, TrainingConfig, DataConfig, SourceConfig, TokenizerConfig, PackingConfig,
    EvaluationConfig, BenchmarkConfig, RuntimeConfig, GenerationConfig,
)  # fmt: skip

OWN: dict[type, dict[str, Kind]] = {
    # limits that no annotation tells; for the rest see `kind_of`
    ModelConfig: {
        **dict.fromkeys(
            ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_seq_len"), (*COUNT, HUGE)
        ),
        "n_kv_heads": (*maybe(COUNT), 5),
        "dropout": (*NUMBER, -0.1, 1.0), "attention_dropout": (*NUMBER, -0.1, 1.0),
        "rope_theta": (*NUMBER, 0.0, -1.0), "norm_eps": (*NUMBER, 0.0, 2.0),
        "init_std": (*NUMBER, 0.0, -1.0), "previous_token_heads": (*WHOLE, -1, 13),
    },
    TrainingConfig: {
        **dict.fromkeys(
            ("batch_size", "num_epochs", "gradient_accumulation_steps", "eval_steps",
             "logging_steps", "world_size", "sample_tokens"), COUNT,
        ),
        **dict.fromkeys(("max_steps", "eval_batches", "save_total_limit"), maybe(COUNT)),
        **dict.fromkeys(("learning_rate", "eps", "lr_power"), (*NUMBER, 0.0, -1.0)),
        **dict.fromkeys(("weight_decay", "max_grad_norm"), (*NUMBER, -0.1)),
        **dict.fromkeys(("warmup_ratio", "min_lr_ratio", "decay_ratio"), (*NUMBER, -0.1, 1.1)),
        **dict.fromkeys(("beta1", "beta2", "momentum"), (*NUMBER, -0.1, 1.0)),
        "local_rank": (*WHOLE, -2), "seed": (*WHOLE, -1, 2**63), "report_to": ("x", ["x"], [3]),
    },
    GenerationConfig: {
        **dict.fromkeys(("max_length", "num_beams"), COUNT), "max_new_tokens": maybe(COUNT),
        "temperature": (*NUMBER, -0.1), "top_k": (*maybe(COUNT),),
        "top_p": (*maybe(NUMBER), 0.0, 1.1), "repetition_penalty": (*NUMBER, 0.0, -1.0),
        "stop": without((*TEXTS, [""]), "one text"), "seed": (*maybe(WHOLE), -1, 2**63),
        "end_id": (*maybe(WHOLE), -1), "pad_id": (*maybe(WHOLE), -1),
        "do_sample": maybe(FLAG), "early_stopping": FLAG,
    },
    EvaluationConfig: {
        "confidence": (*NUMBER, 0.4, 1.0), "prompts": SOME_TEXTS, "top_p": (*maybe(NUMBER), 0.0),
        "repetition_penalty": (*NUMBER, 0.0), "near_duplicate_threshold": (*NUMBER, 0.0, 1.1),
        "seed": (*WHOLE, -1), "temperature": (*NUMBER, -0.1),
    },
    BenchmarkConfig: {"generation_batch_sizes": (None, 3, "1", [], [0], ["x"], [1.5])},
    RuntimeConfig: {"report_to": ("x", ["x"], [3]), "device": (None, 3, ["cpu"])},
    SourceConfig: {"validation_fraction": (*NUMBER, 0.0, 1.0, -0.1)},
}  # fmt: skip
OWN[DataConfig] = OWN[SourceConfig]


def kind_of(annotation: Any) -> Kind:
    """Nonsense for a field of this type."""
    options = get_args(annotation)
    if type(None) in options:
        rest = [kind_of(option) for option in options if option is not type(None)]
        return maybe(rest[0]) if len(rest) == 1 else [3, [3], ""]
    if get_origin(annotation) is Literal:
        return CHOICE
    if options and bool in options:
        return FLAG
    if get_origin(annotation) is list:
        return TEXTS
    return {bool: FLAG, int: WHOLE, float: NUMBER, str: TEXT}[annotation]


def _home(cls: type) -> str:
    return f"{cls.__module__}:{cls.__name__}"


def _entries(cls: Any) -> list[Entry]:
    kinds = {name: kind_of(hint) for name, hint in field_types(cls).items()}
    assert set(OWN.get(cls, {})) <= set(kinds)
    made = [
        Entry(_home(cls), lambda w: cls, lambda w: {}, kinds | OWN.get(cls, {})),
        Entry(
            f"{_home(cls)}.from_dict", lambda w: cls.from_dict, lambda w: _mapping(cls, {}),
            {_argument(cls): MAPPING},
            cases=(
                (_mapping(cls, {"no_such_key": 1}), ("no_such_key", "known keys")),
                (_mapping(cls, {3: 1}), ("3", "unknown key")),
            ),
        ),
    ]  # fmt: skip
    if cls is GenerationConfig:
        return made
    return [
        *made,
        Entry(
            f"{_home(cls)}.save", lambda w: cls().save, lambda w: {"path": "made.json"},
            {"path": (*NEW_FILE, "made.toml", "made")},
        ),
        Entry(
            f"{_home(cls)}.load", lambda w: cls.load, lambda w: {"path": _saved(cls)},
            {"path": FILE},
        ),
    ]  # fmt: skip


def _argument(cls: type) -> str:
    return "values" if cls is GenerationConfig else "config_dict"


def _mapping(cls: type, values: dict[Any, Any]) -> dict[str, Any]:
    return {_argument(cls): values}


def _saved(cls: Any) -> Path:
    path = Path("folder") / f"{cls.__name__}.json"
    if not path.exists():
        cls().save(path)
    return path


ENTRIES = [entry for cls in CLASSES for entry in _entries(cls)] + [
    Entry(
        "llm_trainer.config.generation:GenerationConfig.from_kwargs",
        lambda w: GenerationConfig.from_kwargs, lambda w: {}, {},
        cases=(
            ({"temprature": 1.0}, ("temprature", "did you mean 'temperature'")),
            ({"temperature": -1.0}, ("temperature", "-1.0")),
        ),
    ),
    Entry(
        "llm_trainer.config.generation:GenerationConfig.replace",
        lambda w: GenerationConfig().replace, lambda w: {}, {},
        cases=(
            ({"temprature": 1.0}, ("temprature", "did you mean 'temperature'")),
            ({"top_k": 0}, ("top_k", "0")),
        ),
    ),
    Entry(
        "llm_trainer.config.experiment:load_experiment",
        lambda w: load_experiment, lambda w: {"path": "params.yaml"}, {"path": FILE},
    ),
]  # fmt: skip
# what contradicts itself only together, and is known before anything is built
ENTRIES.append(
    dataclasses.replace(
        ENTRIES[0],
        kinds={},
        cases=(
            ({"d_model": 768, "n_heads": 5}, ("d_model (768)", "n_heads (5)", "try n_heads of")),
            ({"d_model": 12, "n_heads": 4}, ("rotary", "even")),
            ({"d_model": 2**24, "n_heads": 16}, ("d_model (16777216)", "parameters", "lower")),
            ({"use_learned_pos_emb": True, "position": "rope"}, ("use_learned_pos_emb", "rope")),
        ),
    )
)
