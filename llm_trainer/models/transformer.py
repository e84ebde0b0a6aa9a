"""`TransformerLM`: a decoder-only Transformer language model in one file of plain modules.

The block follows the configuration: pre-norm or post-norm, rotary, learned or sinusoidal
positions, gated or plain feed-forward. Labels are the input ids themselves; the shift by one
happens inside, so the model learns to predict the next token whoever calls it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm_trainer.config.checks import choice, instance, place, refuse
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import ConfigurationError, DataError, ModelConfigurationError
from llm_trainer.models.attention import Attention, AttentionKernel
from llm_trainer.models.cache import KVCache
from llm_trainer.models.checks import IGNORED as IGNORED
from llm_trainer.models.checks import check_forward, usable_device
from llm_trainer.models.initial_heads import copy_what_followed, look_back
from llm_trainer.models.layers import FeedForward, make_norm, rope_tables, sinusoidal_table
from llm_trainer.models.loss import SummedLinearCrossEntropy, summed_cross_entropy

if TYPE_CHECKING:
    from llm_trainer.models.decoding import Streamer


class LMOutput(NamedTuple):
    """What `TransformerLM.forward` returns."""

    logits: Tensor
    """(batch, time, vocab_size)."""
    loss: Tensor | None = None
    """Mean negative log-likelihood of the valid targets, in nats; None without labels."""


class Block(nn.Module):
    """Attention and feed-forward, each with a residual connection and a norm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = make_norm(config, config.d_model)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = make_norm(config, config.d_model)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None,
    ) -> Tensor:
        """Map (batch, time, d_model) to the same shape; for the rest see `Attention.forward`."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), rope, mask, cache)
            x = x + self.feed_forward(self.feed_forward_norm(x))
        else:
            x = self.attention_norm(x + self.attention(x, rope, mask, cache))
            x = self.feed_forward_norm(x + self.feed_forward(x))
        return x


class TransformerLM(nn.Module):
    """Decoder-only Transformer language model.

    Args:
        config: the architecture; it is checked again, since fields may have been set since.

    Raises:
        ModelConfigurationError: the configuration describes no possible model.

    Attributes:
        tokenizer_digest: identity of the tokenizer that the model was trained with, saved with the
            model so that pairing it with another one can be refused; None if unknown.
        recompute: whether training computes the activations of blocks a second time in the backward
            pass instead of keeping them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        refuse(ModelConfigurationError, instance("config", config, ModelConfig))
        config.validate()
        self.config = config
        self.tokenizer_digest: str | None = None
        self.recompute = config.gradient_checkpointing
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        kind = config.position_kind
        self.position_embedding = (
            nn.Embedding(config.max_seq_len, config.d_model) if kind == "learned" else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = make_norm(config, config.d_model) if config.pre_norm else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        if kind == "rope":
            cos, sin = rope_tables(config.max_seq_len, config.d_head, config.rope_theta)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)
        elif kind == "sinusoidal":
            table = sinusoidal_table(config.max_seq_len, config.d_model)
            self.register_buffer("position_table", table, persistent=False)
        if not self.head.weight.is_meta:
            self.initialize()

    # ------------------------------------------------------------------ initialisation

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights, in the fixed order of the modules.

        Matrices and embeddings are normal with deviation `init_std`; the output projections of the
        sub-layers are scaled by 1 / sqrt(2 n_layers) (GPT-2) or zero; vectors are ones and zeros.
        `previous_token_heads` and `induction_head` then set some of them; see `initial_heads`.
        """
        refuse(ConfigurationError, instance("generator", generator, torch.Generator, none=True))
        std = self.config.init_std
        out_std = std / math.sqrt(2 * self.config.n_layers) if self.config.init == "scaled" else 0.0
        for name, parameter in self.named_parameters():
            with torch.no_grad():
                if parameter.ndim == 1:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                elif name.endswith((".out.weight", ".down.weight")):
                    if out_std:
                        parameter.normal_(0.0, out_std, generator=generator)
                    else:
                        parameter.zero_()
                else:
                    parameter.normal_(0.0, std, generator=generator)
        self._initialize_heads()

    def _initialize_heads(self) -> None:
        """Give the heads their work that the configuration wants to begin with some."""
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        half = (len(attentions) + 1) // 2
        if self.config.previous_token_heads:
            for attention in attentions[:half]:
                look_back(attention, self.config.previous_token_heads, self.config.rope_theta)
        if self.config.induction_head:
            copy_what_followed(
                attentions[0], attentions[half], self.embedding.weight, self.head.weight,
                self.config,
            )  # fmt: skip

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> LMOutput:
        """Logits of the next token at each position, and the loss if there are labels.

        Args:
            input_ids: (batch, time) long.
            attention_mask: (batch, cached + time), 1 for tokens and 0 for padding on either side;
                None means no padding. With a static cache (batch, max_length) too, 1 where
                nothing is written yet.
            labels: (batch, time) long, the ids themselves; IGNORED (-100) marks non-targets.
            segments: (batch, time) document number of each token; attention and positions then
                stay within a document. Not together with `cache` or `attention_mask`.
            cache: keys and values of the tokens before `input_ids`; it takes those of this call.

        Raises:
            DataError: ids outside the vocabulary, shapes that do not fit, or more tokens than
                `max_seq_len` or the cache hold.
        """
        check_forward(self.config, input_ids, attention_mask, labels, segments, cache)
        hidden = self.hidden_states(
            input_ids, attention_mask=attention_mask, segments=segments, cache=cache
        )
        logits = self.head(hidden)
        if labels is None:
            return LMOutput(logits)
        targets = labels[:, 1:].reshape(-1)
        total = summed_cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets)
        return LMOutput(logits, total / (targets != IGNORED).sum())

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The normalised output of the last block, (batch, time, d_model)."""
        time = input_ids.shape[1]
        past = cache.length if cache is not None else 0
        if past + time > self.config.max_seq_len:
            raise DataError(
                f"{past + time} tokens are more than max_seq_len ({self.config.max_seq_len})"
            )
        assert segments is None or (cache is None and attention_mask is None)
        positions = self._positions(input_ids, attention_mask, segments, cache)
        mask = self._mask(input_ids, attention_mask, segments, cache)
        x = self.embedding(input_ids)  # (batch, time, d_model)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        elif self.config.position_kind == "sinusoidal":
            x = x + self.get_buffer("position_table")[positions]
        rope = self._rope(positions) if self.config.position_kind == "rope" else None
        x = self.dropout(x)
        for block in self.blocks:
            if self.recompute and self.training:
                x = checkpoint(block, x, rope, mask, cache, use_reentrant=False)
            else:
                x = block(x, rope, mask, cache)
        if cache is not None:
            cache.advance(time)
        hidden: Tensor = self.final_norm(x)
        return hidden

    def loss_sum(self, input_ids: Tensor, labels: Tensor, segments: Tensor | None = None) -> Tensor:
        """Summed negative log-likelihood of all valid targets, a scalar in nats.

        The caller divides by the number of valid targets of the whole optimizer step, so that
        accumulation and ranks weigh every token the same.
        """
        hidden = self.hidden_states(input_ids, segments=segments)[:, :-1]
        targets = labels[:, 1:].flatten()
        if torch.compiler.is_compiling():
            loss: Tensor = SummedLinearCrossEntropy.apply(
                hidden.flatten(0, 1), self.head.weight, targets
            )
            return loss
        logits = self.head(hidden)  # (batch, time - 1, vocab_size)
        return summed_cross_entropy(logits.flatten(0, 1), targets)

    @torch.no_grad()
    def token_losses(
        self, input_ids: Tensor, lengths: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Negative log-likelihood of each next token, (batch, time - 1) float32, in nats.

        Targets at or beyond `lengths`, (batch,), are 0.
        """
        logits = self.head(self.hidden_states(input_ids, segments=segments)[:, :-1]).float()
        targets = input_ids[:, 1:]
        # rows of logits side by side: a third of the time that (batch, vocab, time) takes
        losses = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
        ).view(targets.shape)
        if lengths is not None:
            target = torch.arange(1, input_ids.shape[1], device=input_ids.device)
            losses = losses.masked_fill(target >= lengths[:, None], 0.0)
        return losses

    def _positions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        segments: Tensor | None,
        cache: KVCache | None,
    ) -> Tensor:
        """Position of each token: (time,), or (batch, time) where rows differ."""
        time = input_ids.shape[1]
        order = torch.arange(time, device=input_ids.device)
        if attention_mask is not None:
            seen = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
            if cache is not None and cache.static and seen.shape[1] == cache.max_length:
                return seen.index_select(1, cache.offset + order)  # a mask of constant shape
            return seen[:, -time:]
        if segments is not None:
            starts = torch.ones_like(segments, dtype=torch.bool)
            starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
            first = torch.where(starts, order, 0).cummax(dim=-1).values
            return order - first
        if cache is None:
            return order
        return order + (cache.offset if cache.static else cache.length)

    def _mask(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        segments: Tensor | None,
        cache: KVCache | None,
    ) -> Tensor | None:
        """True where a query may look, (batch or 1, 1, time, keys); None for plain causal."""
        time = input_ids.shape[1]
        fresh = cache is None or (cache.length == 0 and not cache.static)
        if attention_mask is None and segments is None and fresh:
            return None
        device = input_ids.device
        if cache is None:
            keys, start = time, torch.zeros((), dtype=torch.long, device=device)
        elif cache.static:
            keys, start = cache.span, cache.offset
        else:
            keys, start = cache.length + time, cache.offset
        query = start + torch.arange(time, device=device)[:, None]
        key = torch.arange(keys, device=device)
        mask = (key <= query)[None]  # (1, time, keys)
        if segments is not None:
            mask = mask & (segments[:, :, None] == segments[:, None, :])
        if attention_mask is not None:
            valid = attention_mask.bool()
            if cache is not None and cache.static:
                # what is not written yet is hidden anyway
                valid = F.pad(valid, (0, cache.max_length - valid.shape[1]))[:, :keys]
            # a padding query sees itself, or its softmax would be 0 / 0
            mask = (mask & valid[:, None, :]) | (key == query)[None]
        return mask[:, None]

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.get_buffer("rope_cos")[positions], self.get_buffer("rope_sin")[positions]
        if positions.ndim == 2:
            cos, sin = cos[:, None], sin[:, None]  # (batch, 1, time, d_head / 2)
        return cos, sin

    def set_attention_kernel(self, kernel: AttentionKernel) -> None:
        """Use another attention kernel in all layers; see `attention`."""
        refuse(ConfigurationError, choice("kernel", kernel, get_args(AttentionKernel)))
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = kernel

    # ------------------------------------------------------------------ generation

    def generate(
        self,
        input_ids: Tensor,
        max_length: int = 100,
        *,
        attention_mask: Tensor | None = None,
        streamer: Streamer | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Continue each row of `input_ids`, (batch, time), left-padded where prompts differ.

        `max_length` counts the prompt. Every other keyword is a field of `GenerationConfig`
        (temperature, top_k, top_p, do_sample, num_beams, repetition_penalty, ...); an unknown one
        is an error.

        Returns:
            (batch, up to max_length) ids, the prompt included.

        Raises:
            GenerationError: an impossible parameter or prompt.
        """
        from llm_trainer.models.decoding import GenerationConfig, generate

        config = GenerationConfig.from_kwargs(max_length=max_length, **kwargs)
        return generate(self, input_ids, attention_mask, config, streamer=streamer)

    # ------------------------------------------------------------------ size and files

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def get_num_params(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def get_model_size_mb(self) -> float:
        """Size of the parameters in memory, in MiB."""
        return sum(p.numel() * p.element_size() for p in self.parameters()) / 2**20

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config.json, model.safetensors and manifest.json, atomically."""
        from llm_trainer.models.storage import save_model

        refuse(ConfigurationError, place("save_directory", save_directory))
        save_model(self, Path(save_directory))

    @classmethod
    def from_pretrained(
        cls, load_directory: str | Path, device: torch.device | str = "cpu"
    ) -> Self:
        """Load what `save_pretrained` wrote, in evaluation mode.

        Raises:
            IntegrityError: a file is missing, damaged or not ours.
            ModelConfigurationError: config.json describes no possible model.
        """
        from llm_trainer.models.storage import load_model

        refuse(ConfigurationError, place("load_directory", load_directory))
        return load_model(cls, Path(load_directory), usable_device(device))
