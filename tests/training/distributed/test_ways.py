"""Two processes, whole models or shards: the numbers of one process."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.distributed.cases import (
    MODES,
    REFUSED,
    RUNS,
    STOP_AT,
    World,
    make,
    make_world,
    perform,
)
from tests.training.distributed.launching import Found, run_cases

pytestmark = pytest.mark.slow

EXACT_RUNS = [name for name in RUNS if not name.startswith("plain")]


def of_modes(*names: str) -> list[str]:
    """The cases, each in both modes."""
    return [f"{name}:{mode}" for name in names for mode in MODES]


@dataclass
class Both:
    """The same cases by one process and by two."""

    world: World
    folder: Path
    one: Found
    two: list[Found]

    def alone(self, name: str) -> dict[str, Any]:
        """What one process makes of a case; kept, since modes and other names may share it."""
        if name not in self.one:
            self.one[name] = perform(self.world, self.folder / "one", name)
        return self.one[name]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("ways")
    world, pair = make_world(folder / "one" / "world"), folder / "two"
    # one process stops in the middle of a step; two go on from there
    stopped = perform(world, folder / "one", "stopped")
    for mode in MODES:
        shutil.copytree(folder / "one" / "stopped", pair / f"resumed-{mode}")
    two = run_cases(
        2, pair,
        [
            *of_modes(*RUNS, "stopped", "resumed", "collectives2", "collectives4", "items"),
            *of_modes("evaluated", "from-config", "not-finite"), *REFUSED, "as-two",
            "collectives-recomputed:fsdp",
        ],
    )  # fmt: skip
    return Both(world, folder, {"stopped": stopped}, two)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", EXACT_RUNS)
def test_in_one_order_of_addition_all_bits_are_those_of_one_process(
    both: Both, name: str, mode: str
) -> None:
    expected, found = both.alone(name), both.two[0][f"{name}:{mode}"]
    assert found["way"] == mode
    assert expected["way"] == "none"
    for what in ("history", "evaluations", "tokens", "weights"):
        assert found[what] == expected[what], what


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["plain", "plain-muon"])
def test_without_it_losses_are_equal_but_for_rounding(both: Both, name: str, mode: str) -> None:
    expected, found = both.alone(name), both.two[0][f"{name}:{mode}"]
    for row, other in zip(expected["history"], found["history"], strict=True):
        close = [float.fromhex(number) for number in row]
        # Muon computes directions in bfloat16, which makes a step of a last bit
        rough = 2e-3 if name == "plain-muon" else 1e-5
        assert [float.fromhex(n) for n in other] == pytest.approx(close, rel=rough)
    first, expected_first = found["history"][0][0], expected["history"][0][0]
    assert first == expected_first, "before the first update there is nothing to round"


@pytest.mark.parametrize("mode", MODES)
def test_all_ranks_know_the_same(both: Both, mode: str) -> None:
    first, second = (found[f"exact:{mode}"] for found in both.two)
    assert (first["rank"], second["rank"]) == (0, 1)
    for what in ("history", "evaluations", "tokens"):
        assert first[what] == second[what], what


def test_shards_halve_what_a_rank_keeps(both: Both) -> None:
    whole = both.alone("exact")["bytes"]
    assert [found["exact:ddp"]["bytes"] for found in both.two] == [whole, whole]
    shards = [found["exact:fsdp"]["bytes"] for found in both.two]
    # each rank counts Adam's steps, and has the odd row of a tensor or not
    assert sum(shards) == pytest.approx(whole, rel=0.01)
    assert max(shards) < 0.53 * whole


def test_recomputed_activations_have_the_same_bits(both: Both) -> None:
    assert both.alone("recomputed")["weights"] == both.alone("exact")["weights"]


def test_recomputing_keeps_less(both: Both, tmp_path: Path) -> None:
    def kept(**changes: Any) -> int:
        made = make(both.world, tmp_path, **changes)
        made._require_set_up()
        made.model.train()
        seen: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = made._parallel.loss(*_batch(made))
        weights = {parameter.data_ptr() for parameter in made.model.parameters()}
        assert loss.requires_grad
        return sum(size for place, size in seen.items() if place not in weights)

    assert kept(activation_checkpointing=True) < 0.6 * kept()


def _batch(made: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    batch = made._stream.load(0)
    return batch.input_ids, batch.labels, batch.segments


def test_the_configured_world_size_is_micro_batches(both: Both) -> None:
    expected = both.alone("exact")
    for what in ("history", "weights"):
        assert both.two[0]["as-two"][what] == expected[what]


@pytest.mark.parametrize("mode", MODES)
def test_what_one_process_left_two_go_on_with(both: Both, mode: str) -> None:
    stopped = both.alone("stopped")
    assert stopped["code"] == 143
    assert stopped["micro_step"] == 1, "in the middle of a step"
    expected = both.alone("whole")
    for what in ("history", "evaluations", "tokens", "weights"):
        assert both.two[0][f"resumed:{mode}"][what] == expected[what], what


@pytest.mark.parametrize("mode", MODES)
def test_a_signal_to_one_of_two_stops_both_at_one_step_and_one_goes_on(
    both: Both, mode: str
) -> None:
    for found in both.two:
        assert found[f"stopped:{mode}"] == {"code": 143, "step": STOP_AT, "micro_step": 0}
    shutil.copytree(
        both.folder / "two" / f"stopped-{mode}", both.folder / "one" / f"resumed-{mode}"
    )
    expected = both.alone("whole")
    found = both.alone(f"resumed:{mode}")
    for what in ("history", "evaluations", "tokens", "weights"):
        assert found[what] == expected[what], what


def test_replicas_meet_once_a_step_and_shards_in_each_micro_batch(both: Both) -> None:
    one, two = (both.two[0][f"collectives{n}:ddp"] for n in (2, 4))
    # one bucket of gradients, and the sum of targets
    assert one == two == {"sums": 2, "gathers": 0, "scatters": 0}
    one, two = (both.two[0][f"collectives{n}:fsdp"] for n in (2, 4))
    # two blocks and what is around them; that stays whole until the backward pass
    assert one == {"sums": 1, "gathers": 5, "scatters": 3}
    assert two == {"sums": 1, "gathers": 10, "scatters": 6}
    # what is computed again is gathered as for the backward pass alone
    assert both.two[0]["collectives-recomputed:fsdp"] == one


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["evaluated", "items"])
def test_evaluation_is_that_of_one_process(both: Both, name: str, mode: str) -> None:
    # of the same weights, to the last bit: those before the training, or of an exact one
    equal = ("before",) if name == "evaluated" else ("after", "evaluations")
    for found in both.two:
        for what in equal:
            assert found[f"{name}:{mode}"][what] == both.alone(name)[what]
        assert found[f"{name}:{mode}"]["after"] == both.two[0][f"{name}:{mode}"]["after"]


@pytest.mark.parametrize("mode", MODES)
def test_workers_read_ahead_what_their_rank_takes(both: Both, mode: str) -> None:
    assert [found[f"items:{mode}"]["workers"] for found in both.two] == [1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_who_has_the_whole_model_generates(both: Both, mode: str) -> None:
    first, second = (found[f"evaluated:{mode}"]["text"] for found in both.two)
    assert first.startswith("def")
    if mode == "ddp":
        assert second == first
    else:
        assert "rank 0 alone has the whole model" in second


@pytest.mark.parametrize("mode", MODES)
def test_data_is_prepared_once_for_all(both: Both, mode: str) -> None:
    expected = both.alone("from-config")
    assert both.two[0][f"from-config:{mode}"]["weights"] == expected["weights"]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_stops_all(both: Both, mode: str) -> None:
    for found in both.two:
        told = found[f"not-finite:{mode}"]
        assert told["kind"] == "TrainingError"
        assert "step 0: loss nan" in told["message"]
        assert told["step"] == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("world_size", ["world_size (3)", "(2)", "--nproc_per_node=3"]),
        ("local_rank", ["local_rank (7)", "leave it at -1"]),
        ("accumulation", ["(3)", "2 processes", "batch_size: 1", "gradient_accumulation_steps: 6"]),
        ("hybrid", ["hybrid_shard", "parallel: fsdp"]),
        ("order", ["3 micro-batches", "power of two"]),
    ],
)
def test_what_two_processes_cannot_do_is_refused_by_both(
    both: Both, name: str, words: list[str]
) -> None:
    for found in both.two:
        assert found[name]["kind"] == "ConfigurationError"
        for word in words:
            assert word in found[name]["message"]
