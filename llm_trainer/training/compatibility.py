"""Whether model, tokenizer and data belong together, asked before any long work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_trainer.config.checks import flags, instance, map_style, place, refuse
from llm_trainer.config.model import ModelConfig
from llm_trainer.exceptions import (
    ConfigurationError,
    DataError,
    IntegrityError,
    ModelConfigurationError,
    TrainingError,
)
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.training.batches import RowSource
from llm_trainer.training.checkpoint import require_checkpoint
from llm_trainer.utils.loading import check_pair
from llm_trainer.utils.parameters import calculate_parameters

if TYPE_CHECKING:
    from llm_trainer.tokenizer import BPETokenizer


def check_request(
    checkpoint: Any, allow_changes: bool, name: str = "resume_from_checkpoint"
) -> None:
    """Check what a training run is asked for, before anything is locked or made.

    Raises:
        ConfigurationError: of a wrong type.
        CheckpointError: there is no such checkpoint.
    """
    refuse(
        ConfigurationError,
        place(name, checkpoint, none=True),
        flags(allow_changes=allow_changes),
    )
    if checkpoint not in (None, "auto"):
        require_checkpoint(Path(checkpoint))


def check_fit(
    model: TransformerLM,
    tokenizer: BPETokenizer,
    train_dataset: Any = None,
    eval_dataset: Any = None,
) -> None:
    """Check kinds, digests, vocabulary and lengths; a data set may tell nothing of itself.

    Raises:
        IntegrityError: model or data were made with another tokenizer, or it has more tokens than
            the model.
        TrainingError: rows do not fit the model, or there are none.
        ConfigurationError: something is of a wrong kind.
    """
    check_pair(model, tokenizer)
    digest = tokenizer.digest
    datasets = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    given = {name: dataset for name, dataset in datasets.items() if dataset is not None}
    for name, dataset in given.items():
        if not isinstance(dataset, RowSource):
            refuse(ConfigurationError, map_style(name, dataset))
        if len(dataset) == 0:
            raise DataError(
                f"{name} is empty: it has no rows; give it more text, or make rows shorter than "
                f"the text"
            )
        packed = getattr(dataset, "tokenizer_digest", None)
        if packed is not None and packed != digest:
            raise IntegrityError(
                f"the data was packed with tokenizer {packed[:12]}, not with {digest[:12]}; run "
                f"`dvc repro pack_sequences`"
            )
        length = getattr(dataset, "row_length", 0)
        if length > model.config.max_seq_len:
            raise TrainingError(
                f"rows of {length} tokens are longer than the model's max_seq_len "
                f"({model.config.max_seq_len}); pack shorter rows or raise it"
            )


def check_same_model(model: TransformerLM, config: ModelConfig) -> None:
    """Check that `config` describes `model`.

    Raises:
        ModelConfigurationError: it does not; each field that differs is named with both values.
    """
    refuse(ModelConfigurationError, instance("model_config", config, ModelConfig))
    config.validate()
    ours, given = model.config.to_dict(), config.to_dict()
    differences = [
        f"{name}: the model has {ours[name]!r}, model_config says {given[name]!r}"
        for name in ours
        if ours[name] != given[name]
    ]
    if differences:
        raise ModelConfigurationError(
            f"model_config is not that of the model ({'; '.join(differences)}); make the model "
            f"from it: TransformerLM(model_config)"
        )
    # the model keeps the config it was made from, so a field set afterwards differs from neither
    if model.get_num_params() != calculate_parameters(config):
        raise ModelConfigurationError(
            f"model_config was changed after the model was made from it: the model has "
            f"{model.get_num_params():,} parameters, one of model_config has "
            f"{calculate_parameters(config):,}; make the model after the last change"
        )
