"""What a trainer does without its loop: hold model, tokenizer and data, and check that they fit.

`Trainer` adds the loop. Data that `train_from_config` prepares is kept in
`<checkpoint_dir>/data`, so that the next run with the same settings starts at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch.utils.data import Dataset

from llm_trainer.config.checks import instance, place, refuse
from llm_trainer.config.checks import text as text_problems
from llm_trainer.config.data import DataConfig
from llm_trainer.config.model import ModelConfig
from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import ConfigurationError, GenerationError, TrainingError
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.batches import RowSource, num_rows
from llm_trainer.training.compatibility import check_fit, check_request, check_same_model
from llm_trainer.training.distributed import ALONE, World, check_world, connect
from llm_trainer.training.evaluation import Evaluator
from llm_trainer.training.parallel import choose_way
from llm_trainer.training.reporting import TrackingOptions
from llm_trainer.training.result import TrainingResult
from llm_trainer.training.utils import get_device
from llm_trainer.utils.memory_check import check_memory
from llm_trainer.utils.planning import PROCESS_BYTES, Plan, training_plan

if TYPE_CHECKING:
    from llm_trainer.data.shards import PackedRows
    from llm_trainer.tokenizer import BPETokenizer


class TrainerBase(ABC):
    """Model, tokenizer, configuration and data of a `Trainer`."""

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: BPETokenizer,
        config: TrainingConfig,
        train_dataset: RowSource | Dataset[Any] | None = None,
        eval_dataset: RowSource | Dataset[Any] | None = None,
        *,
        device: torch.device | str | None = None,
        tracking: TrackingOptions | None = None,
    ) -> None:
        refuse(
            ConfigurationError,
            instance("config", config, TrainingConfig),
            instance("tracking", tracking, TrackingOptions, none=True),
        )
        config.validate()
        self.world = connect()
        check_world(config, self.world)
        check_fit(model, tokenizer, train_dataset, eval_dataset)
        self.config = config
        self.device = get_device("auto" if device is None else device)
        self.way = choose_way(config, model.config, self.world, self.device)
        # of shards the device never has the whole
        self.model = model if self.way == "fsdp" else model.to(self.device)
        self.tokenizer = tokenizer
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self._is_planned = False
        # after a training under fsdp the others have shards
        self._is_with_first = False
        self.tracking = tracking or TrackingOptions.beside(Path(config.checkpoint_dir))
        model.tokenizer_digest = tokenizer.digest

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | Path,
        tokenizer_path: str | Path,
        config: TrainingConfig,
        train_dataset: RowSource | Dataset[Any] | None = None,
        eval_dataset: RowSource | Dataset[Any] | None = None,
        *,
        device: torch.device | str | None = None,
        tracking: TrackingOptions | None = None,
    ) -> Self:
        """A trainer of a saved model, to train it further or to evaluate it.

        Args:
            model_path: a model directory (`save_model`, `save_pretrained`).
            tokenizer_path: the tokenizer's directory, or a model directory that has one.
            config: of the training to come; see the class for this and the rest.

        Raises:
            IntegrityError: a file is missing or damaged, or the tokenizer is another model's.
            TokenizerError: there is no tokenizer.
        """
        from llm_trainer.tokenizer.bpe import BPETokenizer

        refuse(
            ConfigurationError,
            place("model_path", model_path),
            place("tokenizer_path", tokenizer_path),
        )
        model = TransformerLM.from_pretrained(model_path)
        tokenizer = BPETokenizer.from_pretrained(tokenizer_path)
        return cls(
            model, tokenizer, config, train_dataset, eval_dataset, device=device, tracking=tracking
        )

    @abstractmethod
    def train(
        self,
        resume_from_checkpoint: str | Path | Literal["auto"] | None = None,
        *,
        allow_changes: bool = False,
    ) -> TrainingResult:
        """Train to the end of the run."""

    def train_from_config(
        self,
        model_config: ModelConfig,
        data_config: DataConfig,
        resume_from_checkpoint: str | Path | Literal["auto"] | None = None,
        *,
        allow_changes: bool = False,
    ) -> TrainingResult:
        """Prepare the data that `data_config` names, and train on it.

        Text and rows are kept in `<checkpoint_dir>/data` and used again while nothing that they
        depend on has changed. Data sets that the trainer had before are replaced.

        Args:
            model_config: the model's; one that differs from the model at hand is an error.
            data_config: source of the text and shape of the rows.
            resume_from_checkpoint: see `train`.
            allow_changes: see `train`.

        Raises:
            ModelConfigurationError: `model_config` is not the model's; each field is named.
            DataError: the text is missing, malformed, or too short for a row.
            TrainingError: rows longer than the model's max_seq_len; see `train` for the rest.
        """
        from llm_trainer.data.prepare import prepare_data

        check_request(resume_from_checkpoint, allow_changes)
        check_same_model(self.model, model_config)
        refuse(ConfigurationError, instance("data_config", data_config, DataConfig))
        data_config.validate()
        if data_config.max_length > self.model.config.max_seq_len:
            raise TrainingError(
                f"data max_length ({data_config.max_length}) is above the model's max_seq_len "
                f"({self.model.config.max_seq_len}); make the rows shorter, or raise max_seq_len"
            )
        directory = Path(self.config.checkpoint_dir) / "data"

        def prepare() -> tuple[PackedRows, PackedRows]:
            return prepare_data(data_config, self.tokenizer, directory)

        def leave() -> None:
            prepare()

        if self.world.size > 1:
            self.world.first(leave)  # what one has made, all find
        train, validation = prepare()
        check_fit(self.model, self.tokenizer, train, validation)
        self.train_dataset, self.eval_dataset = train, validation
        return self.train(resume_from_checkpoint, allow_changes=allow_changes)

    def evaluate(self) -> dict[str, float]:
        """Loss, perplexity and, with packed rows, bits per byte over all of `eval_dataset`.

        Every rank calls it and has the figures, which are those of one process.

        Raises:
            TrainingError: there is no evaluation data.
        """
        if self.eval_dataset is None:
            raise TrainingError("evaluate() needs an eval_dataset; give one to Trainer")
        if self._is_with_first:
            return self.world.first(lambda: self._evaluator(ALONE).run(max_batches=None))
        return self._evaluator(self.world).run(max_batches=None)

    def generate_text(self, prompt: str, max_length: int = 100, **kwargs: Any) -> str:
        """Continue `prompt`; keywords are fields of `GenerationConfig`.

        Raises:
            GenerationError: an impossible parameter.
            TrainingError: after a training under fsdp, on another rank than 0.
        """
        from llm_trainer.models.decoding import GenerationConfig
        from llm_trainer.utils.generation import TextGenerator

        refuse(GenerationError, text_problems("prompt", prompt))
        if self._is_with_first and not self.world.is_main:
            raise TrainingError(
                f"after a training under fsdp rank 0 alone has the whole model, so rank "
                f"{self.world.rank} cannot generate; call generate_text on rank 0"
            )
        config = GenerationConfig.from_kwargs(max_length=max_length, **kwargs)
        text: str = TextGenerator(self.model, self.tokenizer, self.model.device).generate(
            prompt, config
        )
        return text

    def save_model(self, save_path: str | Path) -> None:
        """Write model and tokenizer to a directory, atomically; of several processes rank 0 does.

        Raises:
            LLMTrainerError: the directory holds other things, or cannot be written.
        """
        refuse(ConfigurationError, place("save_path", save_path))
        if not self.world.is_main:
            return
        from llm_trainer.models.storage import save_model

        def add_tokenizer(directory: Path) -> None:
            self.tokenizer.save_pretrained(directory / "tokenizer")

        save_model(self.model, Path(save_path), add_tokenizer)

    def plan(self, peak_flops: float | None = None) -> Plan:
        """What the run will take; `peak_flops` is the machine's matmul peak, for the time.

        Raises:
            TrainingError: it cannot fit in the memory here.
        """
        dataset = self._require_data()
        row_length = self.model.config.max_seq_len
        if isinstance(dataset, RowSource):
            row_length = dataset.row_length
        rows = num_rows(dataset)
        check_memory(
            self.model.config, self.config, row_length, self.device, ranks=self.world.size,
            per_node=self.world.local_size, warn=self.world.is_main and not self._is_planned,
        )  # fmt: skip
        self._is_planned = True
        process = PROCESS_BYTES if self.device.type == "cpu" else 0
        return training_plan(
            self.model.config, self.config, rows, row_length, peak_flops, process=process
        )

    def _evaluator(self, world: World) -> Evaluator:
        assert self.eval_dataset is not None
        return Evaluator(self.model, self.tokenizer, self.eval_dataset, self.config, world)

    def _require_data(self) -> RowSource | Dataset[Any]:
        if self.train_dataset is None:
            raise TrainingError("there is no train_dataset; give one to Trainer")
        return self.train_dataset
