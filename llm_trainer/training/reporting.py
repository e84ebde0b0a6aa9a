"""What a run shows while it goes: the progress bar, and records for the trackers.

A record's loss is the mean over the steps since the last record, taken from the run's history, so
it is the same whether or not the run was interrupted in between.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llm_trainer.training.seeds import sub_seed
from llm_trainer.training.tracking import RunTracking
from llm_trainer.training.tracking.base import Status

if TYPE_CHECKING:
    from llm_trainer.models.transformer import TransformerLM
    from llm_trainer.training.trainer import Trainer


@dataclass
class TrackingOptions:
    """Names and places for the trackers of one run."""

    record_dir: Path
    """Where the local record of the run is kept."""
    root: Path
    """Holds the default MLflow database and the TensorBoard folders."""
    run_name: str = "train"
    experiment: str = "llm-trainer"
    tracking_uri: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    """Sections of parameters to show; empty means those of model and training."""
    tags: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def beside(cls, checkpoint_dir: Path) -> TrackingOptions:
        """The library's default: all of it in the checkpoint directory."""
        return cls(record_dir=checkpoint_dir / "run", root=checkpoint_dir)


class Reporter:
    """Progress bar and trackers of one sitting of a run."""

    def __init__(self, trainer: Trainer, tracking: RunTracking) -> None:
        self._trainer = trainer
        self._tracking = tracking
        self._since = time.monotonic()
        self._tokens = trainer.state.tokens
        self._bar = tqdm(
            total=trainer.total_steps, initial=trainer.state.step, unit="step", desc="train",
            disable=not _on_terminal(), dynamic_ncols=True, smoothing=0.05,
        )  # fmt: skip

    @classmethod
    def open(cls, trainer: Trainer, resumed: int | None) -> Reporter:
        """Open the trackers; `resumed` is the step of the checkpoint that the run goes on from.

        Raises:
            ConfigurationError, MissingDependencyError: a tracker cannot be had.
        """
        options = trainer.tracking
        # on a terminal the bar and the lines above it are the console
        backends = [b for b in trainer.config.report_to if not (b == "console" and _on_terminal())]
        sections = {"model": trainer.model.config.to_dict(), "training": trainer.config.to_dict()}
        tracking = RunTracking.open(
            backends,
            options.record_dir,
            run_name=options.run_name,
            experiment=options.experiment,
            tracking_uri=options.tracking_uri,
            root=options.root,
            params=options.params or sections,
            tags=options.tags,
            datasets=options.datasets,
            resume_step=resumed,
        )
        return cls(trainer, tracking)

    def step(self) -> None:
        """After each optimizer step."""
        state, config = self._trainer.state, self._trainer.config
        loss, rate, norm = state.history[-1]
        self._bar.set_postfix_str(f"loss {loss:.3f}, lr {rate:.2e}", refresh=False)
        self._bar.update()
        last = state.step == self._trainer.total_steps
        if state.step % config.logging_steps and not last:
            return
        window = (state.step - 1) % config.logging_steps + 1
        losses = [row[0] for row in state.history[-window:] if math.isfinite(row[0])]
        now = time.monotonic()
        speed = (state.tokens - self._tokens) / max(now - self._since, 1e-9)
        self._since, self._tokens = now, state.tokens
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, lr {rate:.2e}, {speed:,.0f} tokens/s", refresh=False
        )
        metrics = {
            "train/lr": rate,
            "train/grad_norm": norm,
            "train/tokens": float(state.tokens),
            "train/tokens_per_second": speed,
        }
        if losses:
            metrics["train/loss"] = sum(losses) / len(losses)
        self._tracking.log(state.step, metrics)

    def evaluation(self, entry: dict[str, float]) -> None:
        """After an evaluation during training."""
        self._tracking.log(
            int(entry["step"]), {f"eval/{k}": v for k, v in entry.items() if k != "step"}
        )
        text = ", ".join(f"{k} {v:.4f}" for k, v in entry.items() if k not in ("step", "tokens"))
        self._write(f"step {int(entry['step']):,}: validation {text}")

    def sample(self, number: int, text: str) -> None:
        """After a sample during training."""
        step = self._trainer.state.step
        self._tracking.log_text(step, f"sample-{number}", text)
        self._write(f"step {step:,}: sample {number}: {text!r}")

    def flush(self) -> None:
        """Before a checkpoint: hand over what is recorded so far."""
        self._tracking.flush()

    def sync(self) -> None:
        """Before its commit, in any thread: what was flushed outlives it."""
        self._tracking.sync()

    def close(self, status: Status) -> None:
        """End of the sitting."""
        self._bar.close()
        self._tracking.finish(status)

    def _write(self, line: str) -> None:
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def sample_texts(trainer: Trainer, model: TransformerLM) -> Iterator[str]:
    """Continuations of the configured prompts by `model` as it is, seeded by the step."""
    from llm_trainer.models.decoding import GenerationConfig
    from llm_trainer.utils.generation import TextGenerator

    config = trainer.config
    generator = TextGenerator(model, trainer.tokenizer, model.device)
    settings = GenerationConfig(
        max_new_tokens=config.sample_tokens, temperature=0.8, top_k=50, do_sample=True,
        seed=sub_seed(config.seed, "sample", trainer.state.step),
    )  # fmt: skip
    for prompt in config.sample_prompts or [""]:
        yield generator.generate(prompt, settings)
