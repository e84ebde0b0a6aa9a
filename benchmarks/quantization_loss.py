"""What int8 weights cost in bits per byte, on the model of the default run."""

from __future__ import annotations

from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.utils.evaluation import evaluate_rows
from llm_trainer.utils.half_linear import halve_model
from llm_trainer.utils.quantization import quantize_model
from pipeline.paths import MODEL, PACKED, TOKENIZER


def measure() -> dict[str, float]:
    """Bits per byte of the whole validation set by type of the weights.

    Raises:
        LLMTrainerError: there is no trained model; `make repro` makes one.
    """
    if not MODEL.is_dir():
        raise LLMTrainerError(f"{MODEL}: is not there; run `make repro` first")
    model = TransformerLM.from_pretrained(MODEL)
    rows, token_bytes = PackedRows(PACKED, "validation"), (
        BPETokenizer.from_pretrained(TOKENIZER).token_bytes()
    )  # fmt: skip
    kinds = {"float32": model, "bfloat16": halve_model(model), "int8": quantize_model(model)}
    return {
        name: evaluate_rows(kind, rows, token_bytes=token_bytes).bits_per_byte
        for name, kind in kinds.items()
    }
