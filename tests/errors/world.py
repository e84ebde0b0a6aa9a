"""What the calls of the table need: a small project, its model and its data, made in a second."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import torch

from llm_trainer.config import ModelConfig, PackingConfig, SourceConfig, TrainingConfig
from llm_trainer.data import LanguageModelingDataset, PackedRows, RawCorpus
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer, FastEncoder
from llm_trainer.training import Trainer
from llm_trainer.training.optimizer import create_optimizer
from llm_trainer.training.utils import save_checkpoint
from llm_trainer.utils.generation import TextGenerator
from llm_trainer.utils.inference import InferenceEngine
from tests.pipeline.small_project import make_project


class World:
    """The working directory is the project; it is the caller's to leave again.

    `data/raw`, `data/packed`, `models/tokenizer`, `models/final` and `checkpoints/checkpoint-1` are
    whole; `text.txt`, `folder`, `empty`, `torn.json` and `list.json` are nothing of ours.
    """

    def __init__(self, path: Path) -> None:
        make_project(path)
        os.chdir(path)
        Path("text.txt").write_text("a text\n")
        Path("folder").mkdir()
        Path("folder/note.txt").write_text("not ours\n")
        Path("empty").mkdir()
        Path("torn.json").write_text('{"a": ')
        Path("list.json").write_text("[]\n")
        self.tokenizer = BPETokenizer.from_pretrained("models/tokenizer")
        self.untrained = BPETokenizer()
        self.model = TransformerLM.from_pretrained("models/final")
        self.raw = RawCorpus("data/raw")
        self.packed = PackedRows("data/packed", "train")
        self.validation = PackedRows("data/packed", "validation")
        self.ids = torch.tensor([[5, 6, 7]])
        self.logits = torch.zeros(1, 300)
        save_checkpoint(self.model, self.optimizer, 1, "checkpoints")

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh one."""
        return create_optimizer(self.model)

    @cached_property
    def source(self) -> SourceConfig:
        """The project's text."""
        return SourceConfig(train_file="train", validation_file="validation")

    @cached_property
    def packing(self) -> PackingConfig:
        """Rows as they are packed."""
        return PackingConfig(max_length=self.packed.row_length)

    @cached_property
    def training(self) -> TrainingConfig:
        """One step, quick."""
        return TrainingConfig(
            batch_size=2, max_steps=1, warmup_steps=0, use_amp=False, report_to=[],
            checkpoint_dir="checkpoints", deterministic=False,
        )  # fmt: skip

    @cached_property
    def dataset(self) -> LanguageModelingDataset:
        """Rows in memory."""
        texts = [f"some text, number {n}, with words enough for a row or two" for n in range(9)]
        return LanguageModelingDataset(texts, self.tokenizer, max_length=16)

    @cached_property
    def trainer(self) -> Trainer:
        """Ready to train."""
        return Trainer(self.model, self.tokenizer, self.training, self.packed, self.validation)

    @cached_property
    def generator(self) -> TextGenerator:
        """Over the model."""
        return TextGenerator(self.model, self.tokenizer)

    @cached_property
    def engine(self) -> InferenceEngine:
        """Over the model."""
        return InferenceEngine(self.model, self.tokenizer)

    @cached_property
    def encoder(self) -> FastEncoder:
        """Of the tokenizer."""
        return FastEncoder(self.tokenizer)

    @cached_property
    def shape(self) -> ModelConfig:
        """The model's."""
        return self.model.config
