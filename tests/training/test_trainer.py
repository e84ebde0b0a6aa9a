"""The trainer: it learns the next token, and a stopped run ends in the same bytes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.soak.trainings import fork, wait_until
from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.data import LanguageModelingDataset
from llm_trainer.exceptions import (
    CheckpointError,
    IntegrityError,
    LockHeldError,
    TrainingError,
)
from llm_trainer.locks import hold_lock
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer
from llm_trainer.training.checkpoint import list_checkpoints, read_checkpoint
from llm_trainer.training.tracking import read_metrics
from tests.needs import needs_compiler

TEXTS = [f"def add_{n}(left, right):\n    return left + right + {n}\n" for n in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    made = BPETokenizer()
    made.train(TEXTS, vocab_size=300)
    return made


@pytest.fixture(scope="module")
def rows(tokenizer: BPETokenizer) -> LanguageModelingDataset:
    return LanguageModelingDataset(TEXTS, tokenizer, max_length=16)


def settings(directory: Path, **changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "batch_size": 3, "gradient_accumulation_steps": 3, "max_steps": 6, "learning_rate": 1e-2,
        "warmup_steps": 2, "use_amp": False, "save_steps": 0, "logging_steps": 1, "eval_steps": 2,
        "eval_batches": 2, "report_to": ["jsonl"], "checkpoint_dir": str(directory), "seed": 3,
    }  # fmt: skip
    return TrainingConfig(**(values | changes))


def network(tokenizer: BPETokenizer, **changes: Any) -> TransformerLM:
    torch.manual_seed(7)
    values: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 32,
        "max_seq_len": 32, "dropout": 0.1, "attention_dropout": 0.1,
    }  # fmt: skip
    return TransformerLM(ModelConfig(**(values | changes)))


def trainer(
    directory: Path, tokenizer: BPETokenizer, rows: Any, model: dict[str, Any] | None = None,
    **changes: Any,
) -> Trainer:  # fmt: skip
    return Trainer(
        network(tokenizer, **(model or {})), tokenizer, settings(directory, **changes), rows, rows,
        device="cpu",
    )  # fmt: skip


def stop_after(made: Trainer, micro_batches: int, number: int = signal.SIGTERM) -> None:
    """Send a real signal to this process once that many micro-batches are done."""
    accumulate, count = made._accumulate, 0

    def counted(batch: Any, targets: int) -> None:
        nonlocal count
        accumulate(batch, targets)
        count += 1
        if count == micro_batches:
            os.kill(os.getpid(), number)

    made._accumulate = counted  # type: ignore[method-assign]


def curve(made: Trainer) -> list[dict[str, Any]]:
    """The local log without times and machine figures."""
    log = Path(made.config.checkpoint_dir) / "run" / "log.jsonl"
    timed = ("time", "train/tokens_per_second")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        {k: v for k, v in r.items() if k not in timed and not k.startswith("system/")}
        for r in records
    ]  # fmt: skip


def merged(records: list[dict[str, Any]]) -> dict[tuple[int, str], Any]:
    pairs = [(r["step"], k, v) for r in records for k, v in r.items() if k != "step"]
    assert len({(s, k) for s, k, _ in pairs}) == len(pairs), "a step was logged twice"
    return {(s, k): v for s, k, v in pairs}


@pytest.mark.parametrize("micro_batches", [1, 4, 9, 14], ids=lambda n: f"stop{n}")
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw"},
        {"optimizer": "muon", "use_amp": True, "amp_dtype": "bfloat16"},
        {"optimizer": "sgd", "max_grad_norm": 0.0},
        {"optimizer": "adamw", "short_rows": [4, 8], "short_rows_ratio": 0.7},
    ],
    ids=["adamw-fp32", "muon-bf16", "sgd", "short-rows"],
)
def test_a_stopped_run_ends_in_the_same_bytes(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any, changes: dict[str, Any], micro_batches: int
) -> None:
    whole = trainer(tmp_path / "whole", tokenizer, rows, **changes)
    expected = whole.train()
    first = trainer(tmp_path / "parts", tokenizer, rows, **changes)
    stop_after(first, micro_batches)
    with pytest.raises(SystemExit) as stopped:
        first.train()
    assert stopped.value.code == 143
    second = trainer(tmp_path / "parts", tokenizer, rows, **changes)
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.fill_(0.5)  # all of it must come from the checkpoint
    result = second.train("auto")
    assert first.state.step * 3 + first.state.micro_step == micro_batches
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert second.state.history == whole.state.history
    assert second.state.evaluations == whole.state.evaluations
    assert result.final_loss == expected.final_loss
    assert merged(curve(second)) == merged(curve(whole))
    last = list_checkpoints(tmp_path / "whole")[0]
    for name in ("model/model.safetensors", "optimizer.safetensors", "history.safetensors"):
        again = tmp_path / "parts" / last.name / name
        assert again.read_bytes() == (last / name).read_bytes()


def test_interrupt_exits_with_130_and_saves(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any
) -> None:
    made = trainer(tmp_path, tokenizer, rows)
    stop_after(made, 5, signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        made.train()
    assert stopped.value.code == 130
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1-2"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_before_the_first_micro_batch_a_signal_ends_the_run_at_once(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any
) -> None:
    made = trainer(tmp_path, tokenizer, rows)
    made._accumulate = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[method-assign, assignment]
    with pytest.raises(SystemExit) as stopped:
        made.train()
    assert stopped.value.code == 143
    assert list_checkpoints(tmp_path) == []
    trainer(tmp_path, tokenizer, rows).train("auto")


def test_learns_the_next_token_and_continues_the_cycle(
    tmp_path: Path, tokenizer: BPETokenizer
) -> None:
    cycle = np.arange(40, 52)

    class Cycle(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": np.resize(np.roll(cycle, -index), 24).tolist()}

    model = {"dropout": 0.0, "attention_dropout": 0.0, "d_model": 32}
    made = Trainer(
        network(tokenizer, **model), tokenizer,
        settings(tmp_path, max_steps=60, gradient_accumulation_steps=1, batch_size=12,
                 eval_strategy="no"),
        Cycle(), device="cpu",
    )  # fmt: skip
    assert made.train().final_loss < 0.1
    ids = torch.from_numpy(np.resize(cycle, 24)[None])
    predicted = made.model(ids).logits.argmax(-1)
    assert torch.equal(predicted[:, :-1], ids[:, 1:]), "it predicts the token after, not the same"
    continued = made.model.generate(ids[:, :6], max_length=24, do_sample=False)
    assert torch.equal(continued, ids)


def test_accumulation_is_a_larger_batch(tmp_path: Path, tokenizer: BPETokenizer, rows: Any) -> None:
    """1 x 8 and 4 x 2 rows a step: the same losses and weights up to rounding."""
    quiet = {"dropout": 0.0, "attention_dropout": 0.0}

    def run(rows_each: int, times: int) -> Trainer:
        return trainer(
            tmp_path / str(times), tokenizer, rows, quiet,
            batch_size=rows_each, gradient_accumulation_steps=times,
        )  # fmt: skip

    one, four = run(8, 1), run(2, 4)
    one.train()
    four.train()
    for a, b in zip(one.state.history, four.state.history, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-5)
    for a, b in zip(one.model.parameters(), four.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_short_rows_first(tmp_path: Path, tokenizer: BPETokenizer, rows: Any) -> None:
    """As many tokens a step throughout, and the loss of a step is that of its own rows."""
    made = trainer(
        tmp_path, tokenizer, rows, model={"dropout": 0.0, "attention_dropout": 0.0},
        short_rows=[4, 8], short_rows_ratio=0.7, gradient_accumulation_steps=1, learning_rate=1e-9,
    )  # fmt: skip
    shapes: list[tuple[int, ...]] = []
    means: list[float] = []
    accumulate = made._accumulate

    def watched(batch: Any, targets: int) -> None:
        shapes.append(tuple(batch.input_ids.shape))
        with torch.no_grad():
            loss = made.model(batch.input_ids, labels=batch.labels).loss
        assert loss is not None
        means.append(float(loss))
        accumulate(batch, targets)

    made._accumulate = watched  # type: ignore[method-assign]
    made.train()
    assert shapes == [(12, 4)] * 2 + [(6, 8)] * 2 + [(3, 16)] * 2
    assert made.state.tokens == 6 * 3 * 16
    losses = [loss for loss, _, _ in made.state.history]
    assert losses == pytest.approx(means, rel=1e-4)


def test_short_rows_need_rows_that_can_be_cut(tmp_path: Path, tokenizer: BPETokenizer) -> None:
    items = [{"input_ids": [1] * 16} for _ in range(8)]
    made = trainer(tmp_path, tokenizer, items, short_rows=[8], eval_strategy="no")
    with pytest.raises(TrainingError, match=r"short_rows \(\[8\]\) needs packed rows"):
        made.train()


def test_epochs_decide_the_steps(tmp_path: Path, tokenizer: BPETokenizer, rows: Any) -> None:
    made = trainer(tmp_path, tokenizer, rows, max_steps=None, num_epochs=2, eval_strategy="epoch")
    result = made.train()
    assert result.steps == -(-2 * len(rows) // 9)
    assert [entry["step"] for entry in made.state.evaluations] == [
        -(-len(rows) // 9), result.steps,
    ]  # fmt: skip


def test_non_finite_loss_stops_before_the_step(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any
) -> None:
    made = trainer(tmp_path, tokenizer, rows)
    with torch.no_grad():
        made.model.blocks[0].attention.out.weight[0, 0] = float("nan")
    before = [p.detach().clone() for p in made.model.parameters()]
    with pytest.raises(TrainingError, match="step 0: loss nan"):
        made.train()
    for a, b in zip(before, made.model.parameters(), strict=True):
        assert torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0))
    report = json.loads((tmp_path / "non-finite-step-0.json").read_text())
    assert len(report["rows"]) == 9


def test_skipping_gives_up_after_ten(tmp_path: Path, tokenizer: BPETokenizer, rows: Any) -> None:
    made = trainer(tmp_path, tokenizer, rows, nan_policy="skip", max_steps=30, eval_strategy="no")
    with torch.no_grad():
        made.model.blocks[0].attention.out.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="11 steps in a row"):
        made.train()


def test_another_configuration_is_refused_and_allowed_on_request(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any
) -> None:
    trainer(tmp_path, tokenizer, rows).train()
    with pytest.raises(CheckpointError, match=r"training\.learning_rate: 0\.01 -> 0\.5"):
        trainer(tmp_path, tokenizer, rows, learning_rate=0.5).train("auto")
    made = trainer(tmp_path, tokenizer, rows, learning_rate=0.5, max_steps=7)
    made.train("auto", allow_changes=True)
    assert made.optimizer.param_groups[0]["peak_lr"] == 0.5, "the configuration is the truth"


def test_a_fresh_start_moves_old_checkpoints_aside(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any
) -> None:
    trainer(tmp_path, tokenizer, rows).train()
    trainer(tmp_path, tokenizer, rows, max_steps=2).train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert (tmp_path / "previous-1" / "checkpoint-6").is_dir()
    assert read_checkpoint(tmp_path / "previous-1" / "checkpoint-6").state.step == 6


def test_a_damaged_newest_checkpoint_falls_back_but_a_named_one_is_an_error(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any
) -> None:
    whole = trainer(tmp_path / "whole", tokenizer, rows, save_steps=2, save_total_limit=9)
    whole.train()
    made = trainer(tmp_path / "hurt", tokenizer, rows, save_steps=2, save_total_limit=9)
    stop_after(made, 16)
    with pytest.raises(SystemExit):
        made.train()
    newest = list_checkpoints(tmp_path / "hurt")[0] / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    with pytest.raises(IntegrityError, match=r"optimizer\.safetensors"):
        trainer(tmp_path / "hurt", tokenizer, rows).train(newest.parent)
    again = trainer(tmp_path / "hurt", tokenizer, rows, save_steps=2, save_total_limit=9)
    again.train("auto")
    assert again.state.history == whole.state.history


def test_two_trainings_in_one_directory(tmp_path: Path, tokenizer: BPETokenizer, rows: Any) -> None:
    lock = tmp_path / "lock"

    def hold() -> None:
        with hold_lock(lock, "train"):
            signal.pause()

    child = fork(hold)
    try:
        wait_until(lambda: lock.exists() and lock.read_text(), [child])
        with pytest.raises(LockHeldError, match=f"process {child}"):
            trainer(tmp_path, tokenizer, rows).train()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_does_not_fit_is_named(tmp_path: Path, tokenizer: BPETokenizer, rows: Any) -> None:
    with pytest.raises(IntegrityError, match="vocab_size"):
        trainer(tmp_path, tokenizer, rows, {"vocab_size": 20})
    with pytest.raises(TrainingError, match="max_seq_len"):
        trainer(tmp_path, tokenizer, rows, {"max_seq_len": 8})
    stranger = network(tokenizer)
    stranger.tokenizer_digest = "0" * 64
    with pytest.raises(IntegrityError, match="tokenizer"):
        Trainer(stranger, tokenizer, settings(tmp_path), rows)
    with pytest.raises(TrainingError, match="train_dataset"):
        Trainer(network(tokenizer), tokenizer, settings(tmp_path)).train()
    with pytest.raises(TrainingError, match="eval_dataset"):
        Trainer(network(tokenizer), tokenizer, settings(tmp_path), rows).evaluate()


def test_float16_on_a_cpu_is_bfloat16_with_one_warning(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(tmp_path, tokenizer, rows, use_amp=True, max_steps=1)
    made.train()
    assert caplog.text.count("use_amp") + caplog.text.count("amp_dtype") == 1
    assert made.execution.amp_dtype in (torch.bfloat16, None)


def test_save_and_generate(tmp_path: Path, tokenizer: BPETokenizer, rows: Any) -> None:
    made = trainer(tmp_path / "c", tokenizer, rows)
    made.train()
    made.save_model(tmp_path / "model")
    loaded = TransformerLM.from_pretrained(tmp_path / "model")
    assert loaded.tokenizer_digest == tokenizer.digest
    assert BPETokenizer.from_pretrained(tmp_path / "model" / "tokenizer").digest == tokenizer.digest
    text = made.generate_text("def add", max_length=20, do_sample=False)
    assert text.startswith("def add")
    assert made.evaluate()["loss"] > 0


def test_the_log_is_the_history(tmp_path: Path, tokenizer: BPETokenizer, rows: Any) -> None:
    made = trainer(tmp_path, tokenizer, rows, logging_steps=2)
    made.train()
    logged = dict(read_metrics(tmp_path / "run" / "log.jsonl")["train/loss"])
    losses = [row[0] for row in made.state.history]
    assert logged == {n: sum(losses[n - 2 : n]) / 2 for n in (2, 4, 6)}


@needs_compiler
def test_a_compiled_run_is_resumed_bitwise_and_close_to_eager(
    tmp_path: Path, tokenizer: BPETokenizer, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    one_layer = {"n_layers": 1, "dropout": 0.0, "attention_dropout": 0.0}
    compiled = {"compile_model": True, "max_steps": 3, "eval_strategy": "no"}
    whole = trainer(tmp_path / "whole", tokenizer, rows, one_layer, **compiled)
    whole.train()
    first = trainer(tmp_path / "parts", tokenizer, rows, one_layer, **compiled)
    stop_after(first, 5)
    with pytest.raises(SystemExit):
        first.train()
    second = trainer(tmp_path / "parts", tokenizer, rows, one_layer, **compiled)
    second.train("auto")
    assert second.execution.compiled
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    eager = trainer(tmp_path / "eager", tokenizer, rows, one_layer, max_steps=3)
    eager.train()
    for a, b in zip(whole.state.history, eager.state.history, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4)
