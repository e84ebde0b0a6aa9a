"""Stage `evaluate`: how well the model predicts the validation text, how it writes, and whether the
validation text was in the training text.

`data/raw` is read for the leak report and for the names of the documents.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from llm_trainer.files import atomic_directory, write_json, write_text
from pipeline.params import load_params
from pipeline.paths import EVALUATE_METRICS, MODEL, PACKED, RAW, SAMPLES, TOKENIZER
from pipeline.stage import main_checkout, stage_program

if TYPE_CHECKING:
    from llm_trainer.utils.evaluation import Evaluation
    from llm_trainer.utils.leakage import LeakReport

NUM_DOCUMENTS = 10
"""Documents listed at either end of the ranking by bits per byte."""
MIN_DOCUMENT_BYTES = 500
"""Shorter documents are not listed: their figures say more about chance than about the model."""
NUM_PAIRS = 50
"""Leaked documents listed."""


def main() -> None:
    """Evaluate models/final on data/packed; write plots/samples and the metrics."""
    params = load_params()
    runtime, config = params.runtime, params.evaluation
    from llm_trainer.training.tracking import begin_upload, log_stage

    # before torch, which takes as long to be there as what sends the figures at the end
    upload = begin_upload(MODEL, runtime=runtime, root=main_checkout())
    import torch

    from llm_trainer.data.raw import RawCorpus
    from llm_trainer.data.shards import PackedRows
    from llm_trainer.exceptions import IntegrityError
    from llm_trainer.models.transformer import TransformerLM
    from llm_trainer.tokenizer.bpe import BPETokenizer
    from llm_trainer.training.lineage import read_lineage
    from llm_trainer.utils.device import get_device
    from llm_trainer.utils.evaluation import check_rows, evaluate_rows
    from llm_trainer.utils.leakage import find_leaks
    from llm_trainer.utils.loading import check_pair
    from llm_trainer.utils.samples import (
        draw_samples,
        sample_metrics,
        samples_markdown,
        samples_table,
    )

    started = time.perf_counter()
    if runtime.num_threads is not None:
        torch.set_num_threads(runtime.num_threads)
    model = TransformerLM.from_pretrained(MODEL, get_device(runtime.device))
    tokenizer = BPETokenizer.from_pretrained(TOKENIZER)
    rows, raw = PackedRows(PACKED, "validation"), RawCorpus(RAW)
    check_rows(model, tokenizer.digest, rows)
    check_pair(model, tokenizer)
    if rows.manifest["raw_digest"] != raw.digest:
        raise IntegrityError(
            f"{PACKED}: packed from other documents than {RAW} holds; run `dvc repro`"
        )

    result = evaluate_rows(
        model, rows, token_bytes=tokenizer.token_bytes(), batch_size=config.batch_size,
        document_mask=bool(read_lineage(MODEL).params["training"]["document_mask"]),
        confidence=config.confidence, progress=True,
    )  # fmt: skip
    assert (result.num_tokens, result.num_bytes) == (rows.num_tokens, rows.num_bytes)
    scored = time.perf_counter()
    leaks = find_leaks(
        lambda: raw.iter_documents("validation"), raw.iter_documents("train"),
        threshold=config.near_duplicate_threshold, num_train=raw.num_documents("train"),
        progress=True,
    )  # fmt: skip
    compared = time.perf_counter()
    samples = draw_samples(model, tokenizer, config, progress=True)

    names = [document.source for document in raw.iter_documents("validation")]
    python = all(name.endswith(".py") for name in names)
    metrics: dict[str, float | int | str] = {
        **result.to_dict(),
        **leaks.to_dict(),
        **sample_metrics(samples, python=python),
        "confidence": config.confidence,
        "device": model.device.type,
        "loss_seconds": round(scored - started, 2),
        "leak_seconds": round(compared - scored, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }
    with atomic_directory(SAMPLES) as directory:
        write_text(directory / "samples.md", samples_markdown(samples))
        write_json(directory / "samples.json", samples_table(samples))
        write_json(directory / "documents.json", document_table(result, names))
        write_json(directory / "leaks.json", leak_table(leaks))
    write_json(EVALUATE_METRICS, metrics)
    print(summary(result, leaks))
    log_stage(
        MODEL, "evaluate", metrics, runtime=runtime, root=main_checkout(), artifacts=[SAMPLES],
        samples=[{"prompt": sample.prompt, "text": sample.text} for sample in samples],
        params={"evaluation": config.to_dict()}, upload=upload,
    )  # fmt: skip


def document_table(result: Evaluation, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The documents that the model predicts best and worst, at most NUM_DOCUMENTS each."""
    scores = result.documents
    ranked = scores.ranked(MIN_DOCUMENT_BYTES)
    num = min(NUM_DOCUMENTS, len(ranked) // 2)

    def entry(place: int) -> dict[str, Any]:
        return {
            "source": names[int(scores.document[place])],
            "bits_per_byte": round(float(scores.bits_per_byte[place]), 4),
            "bytes": int(scores.num_bytes[place]),
        }

    return {
        "best": [entry(place) for place in ranked[:num]],
        "worst": [entry(place) for place in ranked[::-1][:num]],
    }


def leak_table(leaks: LeakReport) -> list[dict[str, Any]]:
    """Validation documents that are in the training text too, the most similar first."""
    return [
        {
            "validation": pair.validation,
            "train": pair.train,
            "similarity": round(pair.similarity, 4),
            "equal": pair.equal,
            "bytes": pair.num_bytes,
        }
        for pair in leaks.pairs[:NUM_PAIRS]
    ]


def summary(result: Evaluation, leaks: LeakReport) -> str:
    """What a reader wants to know, in two lines."""
    interval = ""
    if result.bits_per_byte_low is not None and result.bits_per_byte_high is not None:
        interval = f" ({result.bits_per_byte_low:.3f} to {result.bits_per_byte_high:.3f})"
    return (
        f"validation: {result.bits_per_byte:.4f} bits per byte{interval}, loss {result.loss:.4f}, "
        f"perplexity {result.perplexity:.2f}, over {result.num_bytes:,} bytes of "
        f"{result.num_documents:,} documents\n"
        f"leaks: {leaks.equal:,} equal and {leaks.near:,} nearly equal documents of "
        f"{leaks.documents:,} ({leaks.shared_share:.1%} of the bytes); samples in {SAMPLES}"
    )


if __name__ == "__main__":
    stage_program("evaluate", main, __doc__)
