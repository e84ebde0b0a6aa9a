"""Stage `train_tokenizer`: the byte-level BPE vocabulary of the training documents."""

from __future__ import annotations

from llm_trainer.data.raw import RawCorpus
from llm_trainer.data.vocabulary import build_tokenizer
from llm_trainer.files import write_json
from pipeline.params import load_params
from pipeline.paths import RAW, TOKENIZER, TOKENIZER_METRICS
from pipeline.stage import stage_program


def main() -> None:
    """Read data/raw, verified; write models/tokenizer and its metrics."""
    params = load_params()
    metrics = build_tokenizer(RawCorpus(RAW), params.tokenizer, TOKENIZER)
    write_json(TOKENIZER_METRICS, metrics)


if __name__ == "__main__":
    stage_program("train_tokenizer", main, __doc__)
