"""Contestant: the plain GPT-2 recipe as small projects train it on a CPU.

GPT-2's block (learned positions, LayerNorm, GELU, tied embedding), torch's attention, AdamW with
betas 0.9 and 0.95 and a decay of 0.1 on matrices, cosine decay to a tenth after a linear warm-up,
clipping at 1, eager, float32 unless told otherwise.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contest import SETTLE, Turn
from benchmarks.corpus import ROW_LENGTH, VOCAB_SIZE, load_corpus
from llm_trainer.utils.evaluation import evaluate_rows


class Block(nn.Module):
    """One GPT-2 block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        batch, time_, width = x.shape
        q, k, v = (
            part.view(batch, time_, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, time_, width))
        out: Tensor = x + self.down(F.gelu(self.up(self.ln_2(x))))
        return out


class GPT2(nn.Module):
    """GPT-2 with its initialisation."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.positions = (
            nn.Embedding(VOCAB_SIZE, width),
            nn.Embedding(ROW_LENGTH, width),
        )
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scaled = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if scaled else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, time) to logits."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.tokens.weight)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean over the next tokens."""
        logits = self(ids)[:, :-1]
        return F.cross_entropy(logits.reshape(-1, VOCAB_SIZE), ids[:, 1:].reshape(-1))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokens.weight.device

    def token_losses(self, ids: Tensor, lengths: Tensor, segments: Tensor | None = None) -> Tensor:
        """What `evaluate_rows` asks of a model: (batch, time - 1), 0 beyond `lengths`."""
        assert segments is None, "GPT-2 sees the documents before its own"
        losses = F.cross_entropy(self(ids)[:, :-1].mT.float(), ids[:, 1:], reduction="none")
        return losses.masked_fill(torch.arange(1, ids.shape[1]) >= lengths[:, None], 0.0)


def learning_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine to a tenth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


class Loop:
    """Model, optimizer and batches; `step` is one optimizer step."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.corpus = load_corpus()
        torch.manual_seed(args.get("seed", 0))
        self.model = GPT2(args["width"], args["heads"], args["layers"])
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=args["learning_rate"], betas=(0.9, 0.95))
        self.peak: float = args["learning_rate"]
        self.batch_size: int = args["batch_size"]
        rows = self.corpus.train.rows(np.arange(len(self.corpus.train)))[0]
        self._stream = torch.from_numpy(rows.astype(np.int64)).reshape(-1)
        self._generator = torch.Generator().manual_seed(1)

    def batch(self) -> Tensor:
        """Random windows of the token stream, as GPT-2-like trainers draw them."""
        starts = torch.randint(
            len(self._stream) - ROW_LENGTH, (self.batch_size,), generator=self._generator
        )
        return torch.stack([self._stream[s : s + ROW_LENGTH] for s in starts.tolist()])

    def step(self, rate: float) -> None:
        """One optimizer step at this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.loss(self.batch()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def bits_per_byte(self) -> float:
        """On the whole validation set, whose bytes are the same for all contestants."""
        model: Any = self.model  # evaluate_rows asks only for what GPT2 has, too
        return evaluate_rows(
            model, self.corpus.validation, token_bytes=self.corpus.tokenizer.token_bytes()
        ).bits_per_byte


def run(args: dict[str, Any], turn: Turn) -> None:
    """Speed. args: width, heads, layers, batch_size, learning_rate, steps, warmup."""
    loop = Loop(args)
    for _ in range(args["warmup"]):
        loop.step(args["learning_rate"])
    turn({})
    while True:
        for _ in range(SETTLE):
            loop.step(args["learning_rate"])
        started = time.perf_counter()
        for _ in range(args["steps"]):
            loop.step(args["learning_rate"])
        seconds = time.perf_counter() - started
        turn({"tokens_per_second": args["steps"] * loop.batch_size * ROW_LENGTH / seconds})


def planned_steps(args: dict[str, Any], seconds: float) -> int:
    """Steps that fit into `seconds` of training, by the speed of ten."""
    probe = Loop(args)
    for _ in range(3):
        probe.step(0.0)
    started = time.perf_counter()
    for _ in range(10):
        probe.step(0.0)
    return int(10 * seconds / (time.perf_counter() - started))


def train_for(args: dict[str, Any]) -> dict[str, float]:
    """Quality after args["seconds"] of training: steps are counted first, then planned for."""
    steps = planned_steps(args, args["seconds"])
    return _train(Loop(args), steps, args["seconds"])


def train_steps(args: dict[str, Any], steps: int) -> dict[str, float]:
    """Quality after so many steps, however long they take."""
    return _train(Loop(args), steps, math.inf)


def _train(loop: Loop, steps: int, limit: float) -> dict[str, float]:
    """Follow the schedule of `steps` for `limit` seconds, or to its end if they are infinite."""
    warmup = max(1, round(0.05 * steps))
    started = time.perf_counter()
    done = 0
    while time.perf_counter() - started < limit if math.isfinite(limit) else done < steps:
        loop.step(learning_rate(loop.peak, done, steps, warmup))
        done += 1
    seconds = time.perf_counter() - started
    return {"bits_per_byte": loop.bits_per_byte(), "seconds": seconds, "steps": done}
