"""Stage `pack_sequences`: documents into rows of token ids, in Arrow shards."""

from __future__ import annotations

from llm_trainer.data.engine import Engine, usable_cores
from llm_trainer.data.packing import pack_corpus
from llm_trainer.data.raw import RawCorpus
from llm_trainer.files import write_json
from llm_trainer.tokenizer.bpe import BPETokenizer
from pipeline.params import load_params
from pipeline.paths import PACKED, PACKING_METRICS, RAW, TOKENIZER
from pipeline.stage import stage_program


def main() -> None:
    """Read data/raw and models/tokenizer, both verified; write data/packed and its metrics."""
    params = load_params()
    raw = RawCorpus(RAW)
    tokenizer = BPETokenizer.from_pretrained(TOKENIZER)
    runtime = params.runtime
    metrics = pack_corpus(
        raw,
        tokenizer,
        params.packing,
        PACKED,
        num_workers=runtime.preprocessing_num_workers or usable_cores(),
        engine=Engine(runtime.engine, runtime.ray_address, runtime.preprocessing_num_workers),
    )
    write_json(PACKING_METRICS, metrics)
    print(
        f"{metrics['train_tokens']:,} tokens in {metrics['train_rows']:,} rows to train on, "
        f"{metrics['validation_tokens']:,} in {metrics['validation_rows']:,} to validate on; "
        f"{metrics['train_bytes_per_token']:.2f} bytes per token"
    )


if __name__ == "__main__":
    stage_program("pack_sequences", main, __doc__)
