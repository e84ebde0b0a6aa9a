"""What a layout of Hugging Face is: a family of models, with the way there and back.

A `Layout` says which `ModelConfig` it can hold, writes the config.json and the names that
`transformers` reads, and reads both back. It knows neither files nor `transformers`: it is
functions over a configuration and name -> tensor, so a checkpoint in several files can use it as
well as a model in memory. Each exact correspondence is written once, here and in the modules of
the families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import IntegrityError, ModelConfigurationError
from llm_trainer.export.foreign import ForeignConfig
from llm_trainer.export.parts import Form, Part, to_ours, to_theirs

EXTRA_KEY = "llm_trainer"
"""Our entry in config.json: fields that theirs cannot say and that no result depends on."""
EXTRA_FIELDS = frozenset({
    "dropout", "attention_dropout", "gradient_checkpointing", "init", "init_std",  # training only
    "previous_token_heads", "induction_head",
    "position", "use_learned_pos_emb", "n_kv_heads",  # spelled in two ways
    "bias", "attention_bias",  # false where theirs has biases: they are zero
    "rope_theta",  # where nothing is rotated
})  # fmt: skip


@dataclass(frozen=True)
class Names:
    """What a family calls the modules; those of a block come after `block`."""

    embedding: str
    final_norm: str
    head: str
    block: str
    """Prefix of a block, with {} for its number."""
    attention_norm: str
    qkv: tuple[str, ...]
    out: str
    feed_forward_norm: str
    up: tuple[str, ...]
    """One module, or gate and up."""
    down: str
    position: str = ""
    q_norm: str = ""
    k_norm: str = ""


@dataclass(frozen=True)
class Biases:
    """Which of their modules have biases."""

    attention: bool
    feed_forward: bool
    norm: bool


class Layout(ABC):
    """One family of models, as `transformers` lays it out."""

    name: ClassVar[str]
    model_type: ClassVar[str]
    architecture: ClassVar[str]
    """Class that AutoModelForCausalLM makes."""
    names: ClassVar[Names]
    prefix: ClassVar[str]
    """What their base model's names lack that those with a head have."""
    linear_form: ClassVar[Form] = "rows"
    qkv_form: ClassVar[Form] = "rows"
    renamed: ClassVar[Mapping[str, str]] = {}
    """Other spellings of names, by release of `transformers`."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Ends of names that are no weights: buffers that old releases wrote."""

    # ------------------------------------------------------------------ configurations

    @abstractmethod
    def problems(self, config: ModelConfig) -> list[str]:
        """Why this layout cannot hold `config` exactly: field, value, what would fit."""

    @abstractmethod
    def write_fields(self, config: ModelConfig) -> dict[str, Any]:
        """Their keys for `config`, beside model_type and architectures."""

    @abstractmethod
    def read_fields(self, foreign: ForeignConfig) -> dict[str, Any]:
        """Fields of `ModelConfig` for their keys; notes what has no counterpart."""

    @abstractmethod
    def biases(self, values: Mapping[str, Any]) -> Biases:
        """Which modules have biases, by their config.json."""

    def to_config(self, config: ModelConfig) -> dict[str, Any]:
        """The content of config.json, without token ids and dtype.

        Raises:
            ModelConfigurationError: this layout cannot hold `config`.
        """
        problems = self.problems(config)
        if problems:
            raise ModelConfigurationError(f"{self.name}: {'; '.join(problems)}")
        values = {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "use_cache": True,
            **self.write_fields(config),
        }
        plain = self.from_config(values).to_dict()
        extra = {key: value for key, value in config.to_dict().items() if plain[key] != value}
        assert extra.keys() <= EXTRA_FIELDS, extra
        return {**values, EXTRA_KEY: extra} if extra else values

    def from_config(self, values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """The configuration that computes what theirs does; `where` names the file in messages.

        Raises:
            ModelConfigurationError: there is none, or a value is impossible; all reasons at once.
        """
        foreign = ForeignConfig(values, where)
        fields = self.read_fields(foreign)
        foreign.finish(self.name)
        plain = _build(fields, where)
        extra = values.get(EXTRA_KEY)
        if extra is None:
            return plain
        if not isinstance(extra, Mapping) or not extra.keys() <= EXTRA_FIELDS:
            raise ModelConfigurationError(
                f"{where}: {EXTRA_KEY} may have the keys {', '.join(sorted(EXTRA_FIELDS))}, found "
                f"{extra!r:.200}"
            )
        config = _build({**fields, **extra}, where)
        same = (
            config.position_kind == plain.position_kind
            and config.num_kv_heads == plain.num_kv_heads
            and config.bias <= plain.bias
            and config.has_attention_bias <= plain.has_attention_bias
            and (config.position_kind != "rope" or config.rope_theta == plain.rope_theta)
        )
        if not same:
            raise ModelConfigurationError(
                f"{where}: {EXTRA_KEY} ({dict(extra)}) contradicts the keys beside it; remove it"
            )
        return config

    # ------------------------------------------------------------------ tensors

    def parts(self, config: ModelConfig, values: Mapping[str, Any]) -> Iterator[Part]:
        """All modules of a model, and where they are in theirs; lazily, block by block."""
        names, biases = self.names, self.biases(values)
        norm_bias = config.bias and config.norm == "layernorm"
        rows = tuple(
            count * config.d_head
            for count in (config.n_heads, config.num_kv_heads, config.num_kv_heads)
        )

        def norm(ours: str, theirs: str) -> Part:
            return Part(ours, (theirs,), our_bias=norm_bias, their_bias=biases.norm)

        def linear(
            ours: str, theirs: tuple[str, ...], form: Form, rows: tuple[int, ...],
            our_bias: bool, their_bias: bool,
        ) -> Part:  # fmt: skip
            rows = rows if len(theirs) > 1 else ()
            return Part(ours, theirs, rows, form, config.n_heads, our_bias, their_bias)

        in_attention = config.has_attention_bias, biases.attention
        in_feed_forward = config.bias, biases.feed_forward
        yield Part("embedding", (names.embedding,))
        if config.position_kind == "learned":
            yield Part("position_embedding", (names.position,))
        for index in range(config.n_layers):
            our, their = f"blocks.{index}.", names.block.format(index)
            qkv, up = (tuple(their + name for name in group) for group in (names.qkv, names.up))
            out, down = (their + names.out,), (their + names.down,)
            gate = (config.d_ff,) * len(up)
            yield norm(our + "attention_norm", their + names.attention_norm)
            yield linear(our + "attention.qkv", qkv, self.qkv_form, rows, *in_attention)
            if config.qk_norm:
                yield Part(our + "attention.q_norm", (their + names.q_norm,))
                yield Part(our + "attention.k_norm", (their + names.k_norm,))
            yield linear(our + "attention.out", out, self.linear_form, (), *in_attention)
            yield norm(our + "feed_forward_norm", their + names.feed_forward_norm)
            yield linear(our + "feed_forward.up", up, self.linear_form, gate, *in_feed_forward)
            yield linear(our + "feed_forward.down", down, self.linear_form, (), *in_feed_forward)
        yield norm("final_norm", names.final_norm)
        if not config.tie_embeddings:
            yield Part("head", (names.head,))

    def to_tensors(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Their names and tensors for ours, one by one.

        Args:
            config: the architecture.
            tensors: as `models.storage.model_tensors` names them; a tied head is not asked for.
            values: the config.json to write for; None is that of `to_config`.
        """
        values = self.to_config(config) if values is None else values
        return to_theirs(self.parts(config, values), tensors)

    def from_tensors(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors for theirs, one by one; a tied head is not among them.

        Args:
            config: what `from_config` made of `values`.
            tensors: under the names that `canonical` gives.
            values: the config.json that they come with.

        Raises:
            IntegrityError: a bias that `config` does not have is not zero.
        """
        return to_ours(self.parts(config, values), tensors)

    def canonical(self, names: Iterable[str]) -> dict[str, str]:
        """Our spelling of their names -> the spelling in the file; buffers are left out.

        Raises:
            IntegrityError: a tensor is there under two names.
        """
        stored = [name for name in names if not name.endswith(self.ignored)]
        bare = not any(name.startswith(self.prefix) for name in stored)
        found: dict[str, str] = {}
        for name in stored:
            spelled = self.renamed.get(name, name)
            if bare and spelled != f"{self.names.head}.weight":
                spelled = self.prefix + spelled
            if spelled in found:
                raise IntegrityError(f"the weights have {spelled} twice: {found[spelled]}, {name}")
            found[spelled] = name
        return found


def unless(found: list[str], field: str, value: Any, fitting: tuple[Any, ...]) -> None:
    """Note in `found` that a field must have another value, unless it is a fitting one."""
    if value not in fitting:
        wanted = " or ".join(_spelled(choice) for choice in fitting)
        found.append(f"{field} ({_spelled(value)}) must be {wanted}")


def _spelled(value: Any) -> str:
    """As in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _build(fields: Mapping[str, Any], where: str) -> ModelConfig:
    try:
        return ModelConfig.from_dict(fields)
    except ModelConfigurationError as error:
        raise ModelConfigurationError(f"{where}: {error}") from None


def reversed_names(activations: Mapping[str, str], **more: str) -> dict[str, str]:
    """Their activation -> ours, from ours -> theirs and other spellings of theirs."""
    return {theirs: ours for ours, theirs in activations.items()} | more
