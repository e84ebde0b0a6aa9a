"""Scale on paper: constants, checks against runs of others, tables and the page agree."""

from __future__ import annotations

import json

import pytest

from benchmarks.growth import RESULTS as GROWTH
from benchmarks.scale_fit import HELD_OUT, fit, points
from benchmarks.scale_model import RESULTS, checks, cpu_checks, draw_published, rounded, summary
from benchmarks.scale_published import published
from benchmarks.scale_tables import tables
from docs import update_results
from llm_trainer.json_file import read_json
from llm_trainer.utils import present


@pytest.fixture(scope="module")
def results() -> dict:
    return read_json(RESULTS)


def test_the_constants_are_those_of_the_fit():
    growth = read_json(GROWTH)
    found = fit(growth)["constants"]
    assert found["matmul_share"] == present.CPU_MATMUL_SHARE
    assert found["bandwidth"] == present.CPU_BANDWIDTH
    assert found["kernel_seconds"] == pytest.approx(present.CPU_KERNEL_SECONDS)
    held = [p for p in points(growth) if p.held_out]
    assert len(held) == len(HELD_OUT)


def test_what_was_held_out_is_predicted(results):
    for point in results["fit"]["points"]:
        assert abs(point["error"]) < (0.1 if point["held_out"] else 0.15)
        assert -0.2 <= point["memory_error"] <= 0.05
    for row in results["cpu"]:
        assert abs(row["error"]) < 0.15, row


def test_runs_of_others_are_predicted(results):
    families = summary(results["published"])
    for name, figures in families.items():
        assert figures["median"] < (0.4 if name == "other projects" else 0.1), name
    assert len(families) == 4
    fitted = [row for row in results["published"] if row["fitted"]]
    assert [row["hardware"] for row in fitted] == ["a100-80:8", "h100:8"]
    assert all(abs(row["error"]) < 0.01 for row in fitted)
    assert all(run.source and run.tokens_per_second > 0 for run in published())


def test_the_file_is_what_the_code_computes(results):
    for now, then in zip(checks(), results["published"], strict=True):
        assert now["predicted"] == pytest.approx(then["predicted"], rel=1e-3), "run it again"
    for now, then in zip(cpu_checks(), results["cpu"], strict=True):
        assert now["predicted"] == pytest.approx(then["predicted"], rel=1e-3)
    for case in results["cases"].values():
        saving = case["saving"]
        for closed, simulated in zip(saving["closed"], saving["simulated"], strict=True):
            assert simulated == pytest.approx(closed, abs=0.005)


def test_the_page_has_the_tables(results):
    text = update_results.read(update_results.SCALE)
    assert update_results.with_scale(text, results) == text, "python -m docs.update_results"


ONE_RUN = {
    "engine": "ray", "workers": 2, "killed": True, "mb_per_second": 10.0, "driver_peak_mb": 100,
    "worker_peak_mb": 30,
}  # fmt: skip


TWO_PROCESSES = {
    "processes": 2, "parallel": "fsdp", "exact": True, "recomputed": False, "step_seconds": 1.25,
    "cpu_seconds_a_rank": 1.0, "efficiency": 0.8, "efficiency_by_cpu_time": 0.9,
    "weights_mb_a_rank": 125.9, "optimizer_mb_a_rank": 251.7, "peak_mb_a_rank": 1164,
}  # fmt: skip


def test_what_is_measured_later_is_shown(results):
    made = tables(
        results,
        {"runs": [TWO_PROCESSES], "machine": {"cpu": "a CPU"},
         "model": {"layers": 8, "width": 768, "tokens_a_step": 1024}},
        {"runs": [ONE_RUN | {"mb_per_second": 41.239}, ONE_RUN | {"driver_peak_mb": 1200}]},
    )  # fmt: skip
    row = "| 2 | fsdp + `deterministic_reduction` | 1.25 s | 1.00 s | 80% | 90% | 126 MB |"
    assert row in made["distributed"]
    row = "| ray, one killed in each stage | 2 | 41.2 MB/s | 10.0 MB/s | 1,200 MB | 30 MB |"
    assert row in made["data scale"]
    assert "not there yet" in tables(results)["distributed"]


def test_pictures_are_the_same_bytes_each_time(results, tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_published(results["published"], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert rounded({"x": [1.2345678, (2, "y")]}) == {"x": [1.2346, [2, "y"]]}
    assert json.loads(json.dumps(results)) == results
