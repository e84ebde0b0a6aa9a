"""The referee, with contestants that need no second, and the table that is made of the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import contest
from benchmarks.__main__ import with_figures
from benchmarks.measures import MEASURES, ROWS
from benchmarks.peer_tables import peer_settings, peers
from benchmarks.peers.gpt2_loop import GPT2, learning_rate

ROOT = Path(__file__).parents[2]
NAMES = [
    "train_vs_hf", "train_vs_gpt2", "mfu", "time_to_quality_warm", "time_to_quality_cold",
    "default_bpb", "pack_vs_datasets", "pack_memory_1gb_vs_20mb", "generate_b1_vs_hf",
    "generate_b16_vs_hf", "quantize_speedup", "quantize_bpb_loss", "noop_vs_dvc",
    "stage_overhead_light_s", "stage_overhead_torch_s", "tracking_overhead",
]  # fmt: skip


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A contestant that notes when it worked, and can be told to fail."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "contest.py").write_text((ROOT / "benchmarks" / "contest.py").read_text())
    (package / "echo.py").write_text(
        "def run(args, turn):\n"
        "    print('not for the referee')\n"
        "    turn({'ready': True})\n"
        "    for number in range(args['pieces']):\n"
        "        open(args['log'], 'a').write(args['name'])\n"
        "        turn({'piece': number})\n"
        "    raise SystemExit(3)\n"
    )
    monkeypatch.setattr(contest, "ROOT", tmp_path)
    monkeypatch.setattr(contest, "LOG", tmp_path / "log")
    return str(tmp_path / "order")


def test_contestants_take_turns_and_the_order_turns_round(echo: str) -> None:
    entrants = {
        name: ("echo", {"name": name, "pieces": 9, "log": echo}) for name in ("a", "b", "c")
    }
    told: list[str] = []
    figures = contest.hold(entrants, 3, told.append)
    assert Path(echo).read_text() == "abccbaabc"
    assert figures["b"] == [{"ready": True}, {"piece": 0}, {"piece": 1}, {"piece": 2}]
    assert contest.median(figures["b"], "piece") == 1.0
    assert told[-1] == "round 3 of 3, c: piece 2"


def test_one_that_dies_is_named(echo: str) -> None:
    entrants = {"short": ("echo", {"name": "s", "pieces": 1, "log": echo})}
    with pytest.raises(RuntimeError, match="short: ended with exit code 3; its messages are in"):
        contest.hold(entrants, 2, lambda _: None)
    assert "not for the referee" in contest.LOG.read_text()


def test_every_figure_has_a_measure_and_a_place() -> None:
    assert [row.name for row in ROWS] == NAMES
    assert [name for names in MEASURES.values() for name in names] == NAMES
    row = ROWS[0]
    assert [row.met(value) for value in (1.4, 1.5, 2.0)] == ["no", "bar", "goal"]
    lower = next(row for row in ROWS if row.name == "noop_vs_dvc")
    assert [lower.met(value) for value in (1.2, 1.05, 0.99)] == ["no", "bar", "goal"]


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--only", "nonsense"], 2, "--only nonsense: no such figure; train_vs_hf"),
    (["--list"], 0, "mfu"),
])  # fmt: skip
def test_the_command(arguments: list[str], code: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == code
    assert words in done.stdout + done.stderr


def test_the_committed_results_are_of_known_figures() -> None:
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    assert list(results["ratios"]) == [name for name in NAMES if name in results["ratios"]]
    assert results["machine"]["torch"]


def test_the_reference_loop_is_gpt2() -> None:
    """The same logits as transformers' GPT-2 with the same weights, but for its tanh GELU."""
    transformers = pytest.importorskip("transformers")
    from benchmarks.corpus import ROW_LENGTH, VOCAB_SIZE

    torch.manual_seed(0)
    ours = GPT2(32, 2, 2).eval()
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=ROW_LENGTH, n_embd=32, n_layer=2, n_head=2,
        activation_function="gelu",
    )).eval()  # fmt: skip
    body = theirs.transformer
    body.wte.weight.data.copy_(ours.tokens.weight)
    body.wpe.weight.data.copy_(ours.positions.weight)
    for mine, block in zip(ours.blocks, body.h, strict=True):
        for linear, conv in (
            (mine.qkv, block.attn.c_attn), (mine.proj, block.attn.c_proj),
            (mine.up, block.mlp.c_fc), (mine.down, block.mlp.c_proj),
        ):  # fmt: skip
            conv.weight.data.copy_(linear.weight.T)
    ids = torch.randint(VOCAB_SIZE, (2, 40))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)
    loss = ours.loss(ids)
    torch.testing.assert_close(loss, theirs(ids, labels=ids).loss)
    lengths = torch.tensor([40, 40])
    torch.testing.assert_close(ours.token_losses(ids, lengths).mean(), loss)
    assert (ours.token_losses(ids, torch.tensor([40, 7]))[1, 6:] == 0).all()


def test_its_learning_rate_is_warmed_up_and_decays_to_a_tenth() -> None:
    rates = [learning_rate(1.0, step, 100, 10) for step in range(101)]
    assert rates[0] == 0.1
    assert max(rates) == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)


def test_figures_measured_again_on_another_machine_say_so() -> None:
    results: dict[str, Any] = {"ratios": {}, "cpus": {}, "raw": {}}
    software = {"threads": 2, "python": "3.11.7", "packages": {"torch": "2.13.0"}}
    old, new = ({"cpu": cpu, **software} for cpu in ("An EPYC", "Another EPYC"))
    results = with_figures(results, {"noop_vs_dvc": 1.5}, "noop", {"rounds": [1]}, old)
    results = with_figures(results, {"train_vs_hf": 1.2, "mfu": 0.5}, "training", {}, old)
    assert peers(results).endswith("\nOn An EPYC, 2 threads, Python 3.11.7; torch 2.13.0.")
    results = with_figures(results, {"train_vs_hf": 1.6, "mfu": 0.6}, "training", {"a": 1}, new)
    assert results["ratios"] == {"train_vs_hf": 1.6, "mfu": 0.6, "noop_vs_dvc": 1.5}
    assert list(results["ratios"]) == ["train_vs_hf", "mfu", "noop_vs_dvc"]
    assert results["raw"] == {"noop": {"rounds": [1]}, "training": {"a": 1}}
    table = peers(results)
    assert "| `train_vs_hf` | training tokens/s against the HF Trainer's best | **1.6** |" in table
    assert "\nOn Another EPYC, 2 threads, " in table
    assert table.endswith("\nOn An EPYC: `noop_vs_dvc`.")


def test_the_best_try_of_each_peer_stands_out() -> None:
    tries = {
        "gpt2_loop": {"large": 2.1, "small": 1.9}, "hf_trainer": {"plain": 1000.0, "fast": 2345.6},
        "hf_generate_1": {"a": 2.0, "b": 1.0}, "hf_generate_16": {"a": 7.0},
    }  # fmt: skip
    table = peer_settings(
        {group: {"figures": f, "machine": {"cpu": f"An {group}"}} for group, f in tries.items()}
    )
    for line in ("| large | 2.100 |", "| small | **1.900** |", "| fast | **2,346** |",
                 "| plain | 1,000 |", "| b | 1 |"):  # fmt: skip
        assert line in table.splitlines()
    assert "\nOn An hf_trainer.\n" in table
    assert table.endswith("\nOn An hf_generate_16.")
