"""Four processes as if on two machines: shards within each, replicas between them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from benchmarks.soak.several import fork_ranks
from benchmarks.soak.trainings import wait
from tests.training.distributed.cases import make_world, perform, perform_all
from tests.training.distributed.launching import Found, written

pytestmark = pytest.mark.slow

WAYS = ("ddp", "fsdp", "fsdp-hybrid")


@dataclass
class Four:
    """The same cases by one process and by four."""

    one: Found
    four: list[Found]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Four:
    folder = tmp_path_factory.mktemp("machines")
    world = make_world(folder / "one" / "world")
    names = ["exact-muon", "plain"]
    one = {name: perform(world, folder / "one", name) for name in names}
    cases = [f"exact-muon:{way}" for way in WAYS]
    cases += ["plain:fsdp-hybrid", "collectives4:fsdp-hybrid", "collectives8:fsdp-hybrid"]
    place = folder / "four"
    ranks = fork_ranks(4, lambda _: perform_all(world, place, cases), place, machines=2)
    codes = [wait(child) for child in ranks]
    assert codes == [0] * 4, [(place / f"rank{rank}.log").read_text() for rank in range(4)]
    return Four(one, written(place, 4))


@pytest.mark.parametrize("way", WAYS)
def test_bits_are_those_of_one_process(four: Four, way: str) -> None:
    for found in four.four:
        for what in ("history", "evaluations", "tokens"):
            assert found[f"exact-muon:{way}"][what] == four.one["exact-muon"][what], what
    assert four.four[0][f"exact-muon:{way}"]["weights"] == four.one["exact-muon"]["weights"]


def test_a_rank_keeps_its_share_of_its_machine(four: Four) -> None:
    whole = four.one["exact-muon"]["bytes"]

    def most(way: str) -> int:
        return max(found[f"exact-muon:{way}"]["bytes"] for found in four.four)

    assert most("ddp") == whole
    assert 0.5 * whole <= most("fsdp-hybrid") < 0.53 * whole
    assert 0.25 * whole <= most("fsdp") < 0.28 * whole


def test_losses_are_equal_but_for_rounding(four: Four) -> None:
    found = four.four[3]["plain:fsdp-hybrid"]["history"]
    for row, expected in zip(found, four.one["plain"]["history"], strict=True):
        close = [float.fromhex(number) for number in expected]
        assert [float.fromhex(number) for number in row] == pytest.approx(close, rel=1e-5)


def test_machines_talk_once_a_step(four: Four) -> None:
    one, two = (four.four[0][f"collectives{n}:fsdp-hybrid"] for n in (4, 8))
    # the sums of targets, and of the shards of three groups of weights
    assert one == {"sums": 4, "gathers": 5, "scatters": 3}
    assert two == {"sums": 4, "gathers": 10, "scatters": 6}
