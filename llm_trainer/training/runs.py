"""A training run from its parts, and its result as a directory: what stage `train` and
scripts/train.py share.

The identity of a run is a digest of everything that its result depends on. It names the run in
checkpoints, trackers and the model's lineage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llm_trainer.config import ModelConfig, RuntimeConfig, TrainingConfig
from llm_trainer.data.shards import PackedRows
from llm_trainer.models.storage import TOKENIZER_FOLDER, save_model
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.training.distributed import connect
from llm_trainer.training.fingerprint import result_params, run_fingerprint
from llm_trainer.training.lineage import write_lineage
from llm_trainer.training.reporting import TrackingOptions
from llm_trainer.training.seeds import sub_seed
from llm_trainer.training.trainer import Trainer
from llm_trainer.utils.memory_check import check_memory


@dataclass(frozen=True)
class RunIdentity:
    """What a run's result depends on."""

    fingerprint: str
    """Hex digest of all of it."""
    params: dict[str, dict[str, Any]]
    """The sections model and training, without what changes no result."""
    code: dict[str, str]
    """Path -> sha256 of the source files."""
    data: dict[str, Any]
    """packed_digest, raw_digest and origin of the rows."""
    tokenizer_digest: str

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        training: TrainingConfig,
        tokenizer: BPETokenizer,
        rows: PackedRows,
        code: Mapping[str, str],
    ) -> RunIdentity:
        """The identity of training `model` on `rows`; its vocab_size is the tokenizer's."""
        params = result_params(model, training)
        fingerprint = run_fingerprint(
            params, packed_digest=rows.digest, tokenizer_digest=tokenizer.digest, code=code
        )
        data = {
            "packed_digest": rows.digest,
            "raw_digest": rows.manifest["raw_digest"],
            "origin": rows.manifest["origin"],
        }
        return cls(fingerprint, params, dict(code), data, tokenizer.digest)

    def tracking(
        self,
        rows: PackedRows,
        validation: PackedRows,
        *,
        record_dir: Path,
        root: Path,
        run_name: str,
        runtime: RuntimeConfig,
        params: Mapping[str, Mapping[str, Any]],
    ) -> TrackingOptions:
        """What trackers are told; `params` are all sections, `root` holds the default database."""
        return TrackingOptions(
            record_dir=record_dir, root=root, run_name=run_name,
            experiment=runtime.experiment_name, tracking_uri=runtime.tracking_uri,
            params={**{name: dict(section) for name, section in params.items()}, **self.params},
            tags={
                "fingerprint": self.fingerprint,
                "packed_digest": self.data["packed_digest"],
                "tokenizer_digest": self.tokenizer_digest,
            },
            datasets={
                name: {
                    "digest": rows.digest, "source": rows.path.as_posix(), "context": name,
                    "rows": len(part), "tokens": part.num_tokens, "bytes": part.num_bytes,
                }
                for name, part in (("training", rows), ("validation", validation))
            },
        )  # fmt: skip

    def save(self, trainer: Trainer, directory: Path, **data: Any) -> None:
        """Write model, tokenizer and lineage to `directory`, atomically; `data` joins the lineage.

        Raises:
            LLMTrainerError: `directory` holds other things, or cannot be written.
        """

        def add(temporary: Path) -> None:
            trainer.tokenizer.save_pretrained(temporary / TOKENIZER_FOLDER)
            write_lineage(
                temporary, fingerprint=self.fingerprint, tokenizer_digest=self.tokenizer_digest,
                data={**self.data, **data}, params=self.params, code=self.code,
                packages={"torch": torch.__version__.split("+")[0]},
            )  # fmt: skip

        save_model(trainer.model, directory, add)


def with_runtime(training: TrainingConfig, runtime: RuntimeConfig, run: Path) -> TrainingConfig:
    """`training` with what `runtime` says about a run in the directory `run`."""
    return replace(
        training, checkpoint_dir=str(run), save_steps=runtime.save_steps,
        async_save=runtime.async_save, save_total_limit=runtime.save_total_limit,
        parallel=runtime.parallel, hybrid_shard=runtime.hybrid_shard,
        activation_checkpointing=runtime.activation_checkpointing,
        logging_steps=runtime.logging_steps,
        report_to=runtime.report_to, strict_resume=runtime.strict_resume,
    )  # fmt: skip


def make_trainer(
    model_config: ModelConfig,
    config: TrainingConfig,
    tokenizer: BPETokenizer,
    rows: PackedRows,
    validation: PackedRows,
    *,
    device: torch.device,
    tracking: TrackingOptions,
) -> Trainer:
    """A trainer of a fresh model, whose weights depend on `config.seed` alone.

    Raises:
        TrainingError: it cannot fit in the memory here; said before the model is made.
    """
    world = connect()
    check_memory(
        model_config, config, rows.row_length, device, ranks=world.size,
        per_node=world.local_size, warn=False,
    )  # fmt: skip
    torch.manual_seed(sub_seed(config.seed, "initialisation"))
    model = TransformerLM(model_config)
    return Trainer(model, tokenizer, config, rows, validation, device=device, tracking=tracking)
