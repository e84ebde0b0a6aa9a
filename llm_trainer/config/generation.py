"""How text is generated: every setting of a generation request, checked before torch is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from llm_trainer.config.base import at_least
from llm_trainer.config.checks import instance, refuse
from llm_trainer.config.loader import check_fields, unknown_key
from llm_trainer.exceptions import GenerationError


@dataclass
class GenerationConfig:
    """Settings of a generation request.

    Raises:
        GenerationError: impossible values; all of them in one message.
    """

    max_length: int = 100
    """Longest result in tokens, the prompt included, for each row on its own."""
    max_new_tokens: int | None = None
    """Most tokens to add. If given it counts instead of max_length."""
    temperature: float = 1.0
    """Divides the logits before drawing: below 1 is bolder, above 1 wilder, 0 is greedy."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only; None for all."""
    top_p: float | None = None
    """Draw from the smallest set of tokens with at least this probability; None for all."""
    do_sample: bool | None = None
    """Draw the next token (True) or take the likeliest (False). None draws, except at temperature
    0 and in beam search. True with num_beams above 1 draws the continuations of the beams."""
    num_beams: int = 1
    """Hypotheses of beam search; 1 is no beam search."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that the row has already, prompt
    included (Keskar et al. 2019); 1 is off."""
    length_penalty: float = 1.0
    """Beam search ranks finished hypotheses by log-probability / length ** length_penalty: above 0
    favours long ones, below 0 short ones."""
    early_stopping: bool | Literal["never"] = False
    """Beam search ends a row when num_beams hypotheses are finished (True), when the best running
    one cannot beat the worst finished one at its present length (False), or at any length
    ("never")."""
    stop: list[str] = field(default_factory=list)
    """Texts that end the generation when they appear in it; they are not part of the result. They
    need a tokenizer: `TextGenerator` and `InferenceEngine` know them, a bare model refuses them."""
    seed: int | None = None
    """Seed of the draws: row i of a batch has its own stream, made from seed and i. None takes a
    seed from torch's global generator, so `torch.manual_seed` counts."""
    use_cache: bool = True
    """Keep keys and values of earlier tokens; off recomputes the whole row for each token."""
    end_id: int | None = None
    """Token that ends a row. None: the tokenizer's, or none for a bare model."""
    pad_id: int | None = None
    """Token that fills rows after their end. None: the tokenizer's, else end_id, else 0."""

    def __post_init__(self) -> None:
        self.validate()

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random, resolved."""
        if self.temperature == 0 or self.do_sample is False:
            return False
        return self.do_sample is True or self.num_beams == 1

    def validate(self) -> None:
        """Check all fields again; they may have been set since."""
        stop: Any = self.stop
        if isinstance(stop, str):
            self.stop = [stop]
        problems = check_fields(self) or self.problems()
        if problems:
            raise GenerationError("\n".join(problems))

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each: field, value, remedy."""
        found = []
        for name in ("max_length", "max_new_tokens", "num_beams"):
            found += at_least(name, getattr(self, name), 1)
        for name in ("end_id", "pad_id"):
            found += at_least(name, getattr(self, name), 0)
        if self.temperature < 0:
            found.append(f"temperature ({self.temperature}) must be at least 0; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            found.append(f"top_k ({self.top_k}) must be at least 1; None draws from all tokens")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            found.append(
                f"top_p ({self.top_p}) must be above 0 and at most 1; None draws from all tokens"
            )
        if self.repetition_penalty <= 0:
            found.append(
                f"repetition_penalty ({self.repetition_penalty}) must be above 0; 1 is off"
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            found.append(f"seed ({self.seed}) must be from 0 to below 2**63")
        if "" in self.stop:
            found.append("stop has an empty text (''), which would end every text; leave it out")
        return found

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> Self:
        """Build from keywords; an unknown one is a `GenerationError` with a suggestion."""
        known = [item.name for item in dataclasses.fields(cls)]
        problems = [unknown_key(name, known, "generation") for name in kwargs if name not in known]
        if problems:
            raise GenerationError("\n".join(problems))
        return cls(**kwargs)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values; an unknown name is a `GenerationError`."""
        return self.from_kwargs(**(self.to_dict() | changes))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, in declaration order."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping; see `from_kwargs`."""
        refuse(GenerationError, instance("values", values, Mapping))
        return cls.from_kwargs(**{str(name): value for name, value in values.items()})
