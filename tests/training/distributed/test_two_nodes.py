"""Two machines, as network namespaces with addresses of their own: meeting, loss, going on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.worker import LOST_PEER
from tests.pipeline.launched import (
    LIMIT,
    after_a_checkpoint,
    configure,
    ended,
    make,
    newest,
    outputs,
    outputs_of_one_process,
)
from tests.training.distributed.network import TWO_NODES, Network, NoNamespacesError, kill


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        with Network.built() as made:
            yield made
    except NoNamespacesError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("nodes") / "project")


@pytest.mark.slow
def test_two_nodes_of_which_one_is_lost_then_given_again_end_in_the_bytes_of_one(
    network: Network, project: Path
) -> None:
    """With other losses, a pulled cable among them: row A12 of `make soak`."""
    expected = outputs_of_one_process(project)
    configure(project, TWO_NODES)

    with network.started(project) as (first, second):
        after_a_checkpoint(project, first, newest(project))
        kill(first)  # where they met, and rank 0
        code, err = ended(second, LIMIT)
        assert code == 1
        # who notices first: training, whose peer is gone, or the heartbeat, whose store went too
        by_heartbeat = "error: rank 1: the launcher's store does not answer"
        assert err == f"error: train: {LOST_PEER}\n" or err.startswith(by_heartbeat)
        assert "the same command goes on from the newest checkpoint" in err.lower()

    with network.started(project) as (first, second):
        code, err = ended(first, 120)
        assert code == 0, err
        assert "on cpu in 2 processes on 2 nodes of 1 thread each" in err
        assert err.count("resuming from") == 1
        assert ended(second) == (0, "")
    assert outputs(project) == expected
