"""Stage `train`: packed rows and a tokenizer in, a trained model out.

A run lives in `<main checkout>/.checkpoints/<fingerprint>/` while it goes, so the same command
given again after any interruption goes on where it was, also in a queued experiment's copy of the
tree. The fingerprint covers configuration, data, tokenizer and code: a changed run never continues
another's checkpoint.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llm_trainer.exceptions import ConfigurationError
from llm_trainer.files import write_json
from pipeline.dependencies import stage_modules
from pipeline.gc import collect
from pipeline.launch import TRAIN, launch, wants_launch
from pipeline.params import load_params
from pipeline.paths import LOSS_PICTURE, MODEL, PACKED, RAW, TOKENIZER, TRAIN_CURVE, TRAIN_METRICS
from pipeline.stage import main_checkout, stage_program
from pipeline.worker import described, set_threads

if TYPE_CHECKING:
    from llm_trainer.training.distributed import World
    from llm_trainer.training.runs import RunIdentity
    from llm_trainer.training.trainer import Trainer, TrainingResult
    from llm_trainer.utils.planning import Plan


def main() -> None:
    """Train, or go on training, the model that `params.yaml` describes."""
    params = load_params()
    root = main_checkout()
    runtime = params.runtime
    if wants_launch(runtime):
        launch(runtime, params.training, TRAIN)
        return
    # kept between runs and experiments: compiling costs five times as much without it
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / ".cache" / "inductor"))

    from llm_trainer.data.shards import PackedRows
    from llm_trainer.tokenizer import BPETokenizer
    from llm_trainer.training.curves import draw_curve, write_curve
    from llm_trainer.training.distributed import connect
    from llm_trainer.training.fingerprint import code_digests
    from llm_trainer.training.runs import RunIdentity, make_trainer, with_runtime
    from llm_trainer.training.tracking import log_model_artifacts, run_directory
    from llm_trainer.training.utils import get_device

    world = connect()
    set_threads(runtime.num_threads, world)
    tokenizer = BPETokenizer.from_pretrained(TOKENIZER)
    # read whole and verified by one process for all
    rows = PackedRows(PACKED, "train", verify=world.is_main)
    validation = PackedRows(PACKED, "validation", verify=world.is_main)
    model_config = replace(params.model, vocab_size=tokenizer.vocab_size)
    code = code_digests(stage_modules("train"), Path())
    identity = RunIdentity.of(model_config, params.training, tokenizer, rows, code)
    fingerprint = identity.fingerprint
    run = root / runtime.checkpoint_root / fingerprint
    config = with_runtime(params.training, runtime, run)
    tracking = identity.tracking(
        rows, validation, record_dir=run_directory(root / runtime.checkpoint_root, fingerprint),
        root=root, run_name=os.environ.get("DVC_EXP_NAME", fingerprint[:8]), runtime=runtime,
        params=params.sections(),
    )  # fmt: skip
    check_same_run(world, identity)
    device = get_device(runtime.device)
    trainer = make_trainer(
        model_config, config, tokenizer, rows, validation, device=device, tracking=tracking
    )
    if not world.is_main:
        trainer.train("auto")
        return
    plan = shown_plan(trainer, fingerprint)
    result = trainer.train("auto")

    metrics = train_metrics(trainer, result, plan)
    TRAIN_CURVE.parent.mkdir(exist_ok=True)
    write_curve(trainer.state, TRAIN_CURVE)
    draw_curve(trainer.state, LOSS_PICTURE)
    identity.save(trainer, MODEL)
    write_json(TRAIN_METRICS, metrics)
    log_model_artifacts(
        MODEL, runtime=runtime, root=root, metrics=metrics, artifacts=[LOSS_PICTURE, TRAIN_CURVE],
        ledgers={"download": RAW, "pack_sequences": PACKED},
    )  # fmt: skip
    collect(root / runtime.checkpoint_root, runtime.keep_finished)


def check_same_run(world: World, identity: RunIdentity) -> None:
    """Check that all processes are about to train the same.

    Raises:
        ConfigurationError: this one has other settings, data, tokenizer or code than rank 0.
    """
    if world.size == 1:
        return
    fingerprint: str = world.share(identity.fingerprint)
    code: dict[str, str] = world.share(identity.code)
    if fingerprint != identity.fingerprint:
        other = {name for name, _ in code.items() ^ identity.code.items()}
        differing = ", ".join(sorted(other)) or "settings, data or tokenizer"
        raise ConfigurationError(
            f"rank {world.rank} would train another model than rank 0: {differing} differ; start "
            f"all processes in the same folder, or in equal copies"
        )


def shown_plan(trainer: Trainer, fingerprint: str) -> Plan:
    """The plan of the run, which it prints."""
    from llm_trainer.training.execution import product_dtype
    from llm_trainer.utils.machine import matmul_peak

    world, device = trainer.world, trainer.device
    peak = matmul_peak(device, product_dtype(trainer.config, device))
    plan = trainer.plan(peak * world.size)
    where = f"{device}{described(world)}"
    print(f"\nrun {fingerprint[:8]} on {where}\n\n{plan.render()}\n", file=sys.stderr)
    return plan


def train_metrics(
    trainer: Trainer, result: TrainingResult, plan: Plan
) -> dict[str, float | int | None]:
    """The stage's metrics; prints the plan once more with what came of it beside."""
    from llm_trainer.utils.machine import peak_memory_bytes
    from llm_trainer.utils.planning import Actuals

    memory = peak_memory_bytes(trainer.device)
    actuals = Actuals(
        parameters=trainer.model.get_num_params(), steps=result.steps, tokens=result.tokens,
        seconds=result.seconds, peak_memory=memory,
    )  # fmt: skip
    print(f"\n{plan.render(actuals)}\n", file=sys.stderr)
    speed = result.tokens / max(result.seconds, 1e-9)
    return {
        "parameters": trainer.model.get_num_params(),
        "steps": result.steps,
        "tokens": result.tokens,
        "loss": result.final_loss,
        **{f"validation_{k}": v for k, v in result.evaluation.items() if k != "step"},
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(speed),
        "mfu": plan.utilization(speed),
        "peak_memory_bytes": memory,
    }


if __name__ == "__main__":
    stage_program("train", main, __doc__)
