#!/usr/bin/env python3
"""Train a language model from a configuration file: text to tokenizer to rows to model.

    python scripts/train.py --config configs/model_config.yaml --output_dir ./output
    python scripts/train.py --config params.yaml --output_dir ./output --set training.max_steps=100
    python scripts/train.py --config configs/model_config.yaml --output_dir ./output --plan
    torchrun --nproc_per_node=2 scripts/train.py --config params.yaml --output_dir ./output

Text, tokenizer and rows are kept between runs and made again only if something that they depend on
changed. The output directory holds the model, its tokenizer and its lineage, and nothing else; it
is written as a whole at the end. Of several processes rank 0 prepares the data, speaks and writes;
`runtime.launcher` starts them without `torchrun` on the command line.

Exit codes: 0 done, 2 wrong input, 130 and 143 stopped by SIGINT and SIGTERM (a checkpoint is saved,
and the same command with `--resume_from_checkpoint auto` goes on).
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works without an installation

from llm_trainer.exceptions import CheckpointError, ConfigurationError  # noqa: E402
from llm_trainer.training.settings import RunSettings, read_settings  # noqa: E402
from pipeline.dependencies import stage_modules  # noqa: E402
from pipeline.launch import launch, processes_per_node, wants_launch  # noqa: E402
from pipeline.stage import main_checkout, run_stage  # noqa: E402
from pipeline.train import check_same_run, shown_plan, train_metrics  # noqa: E402
from pipeline.worker import is_main, set_threads  # noqa: E402

if TYPE_CHECKING:
    import torch

    from llm_trainer.config import ModelConfig
    from llm_trainer.training.inputs import RunInputs
    from llm_trainer.utils.planning import Plan

logger = logging.getLogger("train")

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def build_parser() -> argparse.ArgumentParser:
    """All arguments."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Train a language model from a configuration file."
    )
    add = parser.add_argument
    add(
        "--config", required=True, metavar="FILE",
        help="YAML or JSON with the sections model, training and data; or the pipeline's "
        "params.yaml",
    )  # fmt: skip
    add(
        "--output_dir", required=True, metavar="DIR",
        help="directory for model and tokenizer; a model that is there is replaced at the end",
    )  # fmt: skip
    add(
        "--resume_from_checkpoint", metavar="PATH",
        help="checkpoint directory to go on from, or auto for the newest whole one",
    )  # fmt: skip
    add(
        "--force_retrain_tokenizer", action="store_true",
        help="train the tokenizer although there is one for these settings",
    )  # fmt: skip
    add("--log_level", default="info", choices=LOG_LEVELS, help="(default: info)")
    add(
        "--plan", action="store_true",
        help="print parameters, steps, memory and time of the run, and train nothing; the data is "
        "prepared only if the number of steps depends on it; exit code 2 if it cannot fit",
    )  # fmt: skip
    add(
        "--plan-for", metavar="HARDWARE",
        help="the plan for other hardware, such as h100:64, or with overrides "
        "h100:64,gpus_per_node=4,inter_gb_s=50 (also intra_gb_s, memory_gb, price_hour, "
        "matmul_share)",
    )  # fmt: skip
    add(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="set a value over the file's; may be repeated",
    )  # fmt: skip
    return parser


@dataclass(frozen=True)
class Places:
    """Where a run keeps what."""

    output: Path
    checkpoints: Path
    """The run's own directory, or with params.yaml the one that holds those of all runs."""
    data: Path
    """Raw text, tokenizers and rows."""
    cache: Path
    """What the compiler keeps."""

    @classmethod
    def of(cls, settings: RunSettings, output: Path) -> Places:
        """The places of a run with these settings.

        Raises:
            ConfigurationError: the output directory would have to hold the checkpoints.
        """
        root = main_checkout()
        cache = root / ".cache"
        if settings.staged:
            checkpoints, data = root / settings.runtime.checkpoint_root, cache / "data"
            key = "runtime.checkpoint_root"
        else:
            checkpoints = Path(settings.training.checkpoint_dir)
            data, key = checkpoints / "data", "training.checkpoint_dir"
        if checkpoints.resolve().is_relative_to(output.resolve()):
            raise ConfigurationError(
                f"{key} ({checkpoints}) lies in --output_dir ({output}), which holds nothing but "
                f"the model; choose another, or --output_dir {output / 'model'}"
            )
        return cls(output, checkpoints, data, cache)


def train(arguments: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        LLMTrainerError: wrong input of any kind, as early as it can be known.
    """
    settings = read_settings(arguments.config, arguments.set)
    places = Places.of(settings, Path(arguments.output_dir))
    resume = arguments.resume_from_checkpoint
    if resume not in (None, "auto") and not Path(resume).is_dir():
        raise CheckpointError(f"--resume_from_checkpoint: {resume}: no such directory")
    planning = arguments.plan or arguments.plan_for is not None
    if wants_launch(settings.runtime) and not planning:
        launch(settings.runtime, settings.training, [__file__, *arguments.words])
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(places.cache / "inductor"))
    from llm_trainer.models.storage import check_replaceable
    from llm_trainer.training.distributed import connect
    from llm_trainer.training.inputs import prepare_inputs
    from llm_trainer.training.tracking.factory import check_backends
    from llm_trainer.utils.device import get_device

    device = get_device(settings.runtime.device)
    world = connect()
    set_threads(settings.runtime.num_threads, world)
    report_to = (settings.runtime if settings.staged else settings.training).report_to
    check_backends(report_to)
    check_replaceable(places.output)
    retrain = arguments.force_retrain_tokenizer
    if planning:
        show_plan(settings, places, device, arguments.plan_for, retrain=retrain)
        return

    def prepare(again: bool) -> RunInputs:
        return prepare_inputs(settings, places.data, places.output, retrain_tokenizer=again)

    if world.is_main:
        prepared: list[RunInputs] = []
        world.first(lambda: prepared.append(prepare(retrain)))
        inputs = prepared[0]
    else:
        world.first(lambda: None)
        inputs = prepare(False)  # it is there now
    run(settings, places, inputs, device, resume=resume)


def run(
    settings: RunSettings,
    places: Places,
    inputs: RunInputs,
    device: torch.device,
    *,
    resume: str | None,
) -> None:
    """Print the plan, train, save."""
    from llm_trainer.training.distributed import connect
    from llm_trainer.training.fingerprint import code_digests
    from llm_trainer.training.runs import RunIdentity, make_trainer, with_runtime
    from llm_trainer.training.tracking import run_directory

    tokenizer, rows, validation = inputs.tokenizer, inputs.rows, inputs.validation
    code = code_digests(stage_modules("train", ROOT), ROOT)
    identity = RunIdentity.of(inputs.model, settings.training, tokenizer, rows, code)
    config, record_dir = settings.training, places.checkpoints / "run"
    if settings.staged:
        directory = places.checkpoints / identity.fingerprint
        record_dir = run_directory(places.checkpoints, identity.fingerprint)
        config = with_runtime(config, settings.runtime, directory)
    tracking = identity.tracking(
        rows, validation, record_dir=record_dir, run_name=places.output.resolve().name,
        root=main_checkout() if settings.staged else places.checkpoints,
        runtime=settings.runtime, params=settings.sections,
    )  # fmt: skip
    world = connect()
    check_same_run(world, identity)
    trainer = make_trainer(
        inputs.model, config, tokenizer, rows, validation, device=device, tracking=tracking
    )
    if not world.is_main:
        trainer.train(resume)
        return
    plan = shown_plan(trainer, identity.fingerprint)
    try:
        result = trainer.train(resume)
    except SystemExit:
        print(f"to go on: {continuing(sys.argv)}", file=sys.stderr)
        raise
    metrics = train_metrics(trainer, result, plan)
    identity.save(trainer, places.output, **inputs.lineage)
    print(summary(places.output, metrics))


def show_plan(
    settings: RunSettings, places: Places, device: torch.device, hardware: str | None, *,
    retrain: bool,
) -> None:  # fmt: skip
    """Print the plan of the run on this machine, or on `hardware`.

    Raises:
        ConfigurationError: it cannot fit there; the message names what would.
    """
    from llm_trainer.training.distributed import launched
    from llm_trainer.training.execution import product_dtype
    from llm_trainer.utils.compiler import is_to_be_compiled
    from llm_trainer.utils.hardware import parse_cluster
    from llm_trainer.utils.machine import matmul_peak
    from llm_trainer.utils.present import present_cluster
    from llm_trainer.utils.scale_plan import plan_scale

    model, plan = make_plan(settings, places, retrain=retrain)
    if hardware:
        cluster, kind = parse_cluster(hardware), "cuda"
    else:
        world = launched(os.environ)
        ranks, local = world.size, world.local_size
        if wants_launch(settings.runtime):
            local = processes_per_node(settings.runtime)
            ranks = local * settings.runtime.nnodes
        peak = matmul_peak(device, product_dtype(settings.training, device))
        cluster = present_cluster(device, peak, ranks, local)
        kind = device.type
    scale = plan_scale(
        model, settings.training, cluster, plan.row_length, plan.steps,
        fused=is_to_be_compiled(settings.training.compile_model, kind, plan.total_flops),
    )  # fmt: skip
    print(f"{plan.render(brief=True)}\n\n" + "\n".join(scale.lines()))
    if not scale.fits:
        raise ConfigurationError(scale.complaint())


def make_plan(settings: RunSettings, places: Places, *, retrain: bool) -> tuple[ModelConfig, Plan]:
    """Model and plan of the run; the data is made only if the number of steps depends on it."""
    from llm_trainer.data.prepare import PreparedSize, find_prepared
    from llm_trainer.training.inputs import prepare_inputs
    from llm_trainer.utils.planning import training_plan

    size = find_prepared(settings.source, settings.tokenizer, settings.packing, places.data)
    if size is None and settings.training.max_steps is None:
        logger.info("the number of steps depends on the data, which is prepared first")
        inputs = prepare_inputs(settings, places.data, places.output, retrain_tokenizer=retrain)
        size = PreparedSize(len(inputs.rows), inputs.tokenizer.vocab_size)
    vocab_size = size.vocab_size if size else settings.tokenizer.vocab_size
    model = replace(settings.model, vocab_size=vocab_size)
    rows, length = size.num_rows if size else None, settings.packing.max_length
    return model, training_plan(model, settings.training, rows, length)


def continuing(command: Sequence[str]) -> str:
    """The command line that goes on with the run that `command` began."""
    kept = list(command)
    for number, word in enumerate(kept):
        if word == "--resume_from_checkpoint":
            del kept[number : number + 2]
            break
        if word.startswith("--resume_from_checkpoint="):
            del kept[number]
            break
    return shlex.join(["python", *kept, "--resume_from_checkpoint", "auto"])


def summary(output: Path, metrics: Mapping[str, float | int | None]) -> str:
    """What came of the run, for people."""
    names = ("loss", "validation_loss", "validation_perplexity", "validation_bits_per_byte")
    figures = ", ".join(
        f"{name.replace('_', ' ')} {value:.4f}"
        for name in names
        if (value := metrics.get(name)) is not None
    )
    return (
        f"{figures}\nmodel and tokenizer: {output}\n"
        f"next: python scripts/generate.py --model_path {shlex.quote(str(output))} --interactive"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and train; errors become exit codes."""
    arguments = build_parser().parse_args(argv)
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    level = arguments.log_level.upper() if is_main() else "ERROR"
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        run_stage("train", lambda: train(arguments))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
