"""Evaluation against closed forms, against documents scored alone, and over any batch size."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from llm_trainer.config import ModelConfig
from llm_trainer.data.packed_manifest import write_packed_manifest
from llm_trainer.data.packers import pack_arrays
from llm_trainer.data.shard_writer import ShardWriter
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import IntegrityError, TrainingError
from llm_trainer.models import TransformerLM
from llm_trainer.utils.confidence import ratio_interval, student_quantile
from llm_trainer.utils.evaluation import evaluate_rows

VOCAB = 261
END, PAD = 0, 1
TOKEN_BYTES = np.where(np.arange(VOCAB) < 2, 0, 1 + np.arange(VOCAB) % 4).astype(np.int64)


def documents(count: int, longest: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(2, VOCAB, draw.integers(1, longest + 1)) for _ in range(count)]


def packed(path, texts, strategy="concat", row_length=32) -> PackedRows:
    dtype = np.dtype(np.uint16)
    path.mkdir(parents=True)
    splits = {}
    for split in ("train", "validation"):
        batch = pack_arrays(
            texts, strategy, row_length=row_length, end_id=END, pad_id=PAD, dtype=dtype
        )
        writer = ShardWriter(
            path, split, row_length=row_length, dtype=dtype, shard_bytes=row_length * 40
        )
        writer.write(batch)
        summary = writer.close()
        splits[split] = {
            "rows": summary.rows, "tokens": summary.tokens, "documents": len(texts),
            "bytes": int(sum(TOKEN_BYTES[text].sum() for text in texts)),
            "max_id": summary.max_id, "files": summary.files,
        }  # fmt: skip
    write_packed_manifest(
        path, row_length=row_length, dtype=dtype.name, strategy=strategy, vocab_size=VOCAB,
        end_id=END, pad_id=PAD, tokenizer_digest="t" * 64, raw_digest="r" * 64, origin={},
        splits=splits, ledger={},
    )  # fmt: skip
    return PackedRows(path, "validation")


def model(**changes) -> TransformerLM:
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCAB, "d_model": 32, "n_heads": 2, "n_layers": 2, "d_ff": 64,
        "max_seq_len": 32, "dropout": 0.5, "attention_dropout": 0.5, "tie_embeddings": False,
        "init_std": 0.3,
    }  # fmt: skip
    return TransformerLM(ModelConfig(**(values | changes)))


def uniform_model() -> TransformerLM:
    made = model()
    torch.nn.init.zeros_(made.head.weight)
    return made


@pytest.fixture(scope="module")
def texts():
    return documents(25, 70)


@pytest.fixture(scope="module")
def rows(tmp_path_factory, texts):
    return packed(tmp_path_factory.mktemp("data") / "packed", texts)


def evaluate(made, rows, **options):
    return evaluate_rows(made, rows, token_bytes=TOKEN_BYTES, **options)


@pytest.mark.parametrize("strategy", ["concat", "best_fit"])
def test_a_uniform_model_has_the_loss_log_v(tmp_path, texts, strategy):
    rows = packed(tmp_path / "packed", texts, strategy)
    result = evaluate(uniform_model(), rows, batch_size=4)
    tokens = sum(len(text) for text in texts)
    num_bytes = sum(int(TOKEN_BYTES[text].sum()) for text in texts)
    assert result.num_tokens == tokens + len(texts) == rows.num_tokens
    assert result.num_bytes == num_bytes == rows.num_bytes
    assert result.num_documents == len(texts)
    assert result.loss == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert result.perplexity == pytest.approx(VOCAB, rel=1e-5)
    # end tokens are no text: they are in the loss and not in bits per byte
    assert result.bits_per_byte == pytest.approx(tokens * math.log2(VOCAB) / num_bytes, rel=1e-6)
    assert result.documents.document.tolist() == list(range(len(texts)))
    for number, text in enumerate(texts):
        assert result.documents.num_bytes[number] == TOKEN_BYTES[text].sum()
        assert result.documents.nats[number] == pytest.approx(len(text) * math.log(VOCAB), rel=1e-6)
        assert result.documents.bits_per_byte[number] == pytest.approx(
            len(text) * math.log2(VOCAB) / TOKEN_BYTES[text].sum(), rel=1e-6
        )


@torch.inference_mode()
def score_alone(made: TransformerLM, text: np.ndarray) -> np.ndarray:
    """Nats of the text tokens and the end token of a document that nothing stands beside."""
    ids = torch.from_numpy(np.concatenate([[END], text, [END]]))[None]
    logits = made.eval()(ids).logits[0].double()
    return -logits.log_softmax(-1)[torch.arange(len(text) + 1), ids[0, 1:]].numpy()


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_with_a_document_mask_documents_score_as_if_alone(tmp_path, position):
    texts = documents(30, 30, seed=1)
    rows = packed(tmp_path / "packed", texts, "best_fit")
    made = model(position=position)
    result = evaluate(made, rows, batch_size=3, document_mask=True)
    alone = [score_alone(made, text) for text in texts]
    assert result.documents.nats == pytest.approx(np.array([x[:-1].sum() for x in alone]), rel=1e-4)
    assert result.loss == pytest.approx(np.concatenate(alone).mean(), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(
        sum(x[:-1].sum() for x in alone) / math.log(2) / rows.num_bytes, rel=1e-5
    )
    unmasked = evaluate(made, rows)
    # without the mask a document sees its neighbours
    assert np.abs(unmasked.documents.nats / result.documents.nats - 1).max() > 0.01


def test_rows_score_as_one_by_one(rows):
    made = model().eval()
    total, count = 0.0, 0
    for index in range(len(rows)):
        ids, lengths = rows.rows(np.array([index]))
        kept = torch.from_numpy(ids[0, : lengths[0]].astype(np.int64))
        with torch.inference_mode():
            nats = -made(kept[None]).logits[0].double().log_softmax(-1)
        total += float(nats[torch.arange(len(kept) - 1), kept[1:]].sum())
        count += len(kept) - 1
    result = evaluate(made, rows)
    assert result.num_tokens == count
    assert result.loss == pytest.approx(total / count, rel=1e-6)
    assert result.perplexity == math.exp(result.loss)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 1000])
def test_batch_size_does_not_matter(rows, batch_size):
    made = model()
    reference = evaluate(made, rows, batch_size=4)
    result = evaluate(made, rows, batch_size=batch_size)
    assert result.num_tokens == reference.num_tokens
    for name in ("loss", "bits_per_byte", "bits_per_byte_low", "bits_per_byte_high"):
        assert getattr(result, name) == pytest.approx(getattr(reference, name), rel=2e-6)
    assert np.allclose(result.documents.nats, reference.documents.nats, rtol=1e-5)
    assert np.array_equal(result.documents.num_bytes, reference.documents.num_bytes)


def test_the_mode_and_the_random_state_are_left_alone(rows):
    made = model().train()
    state = torch.get_rng_state()
    first = evaluate(made, rows)
    assert made.training
    assert torch.equal(state, torch.get_rng_state())
    assert evaluate(made.eval(), rows).loss == first.loss  # no dropout while evaluating
    assert not made.training


def test_max_batches_takes_rows_from_all_over_the_split(rows):
    made = model()
    part = evaluate(made, rows, batch_size=2, max_batches=3)
    assert part.num_tokens == 6 * 31
    assert part.documents.document.max() > 18
    assert part.documents.document.min() < 3
    whole = evaluate(made, rows, batch_size=2, max_batches=10_000)
    assert whole.num_tokens == rows.num_tokens


def test_autocast_is_close(rows):
    made = model(init_std=0.05)
    exact = evaluate(made, rows)
    half = evaluate(made, rows, autocast_dtype=torch.bfloat16)
    assert half.loss != exact.loss
    assert half.loss == pytest.approx(exact.loss, rel=2e-3)


def test_what_cannot_be_scored_is_refused(tmp_path, rows):
    with pytest.raises(IntegrityError, match="token_bytes has only 50 ids"):
        evaluate_rows(model(), rows, token_bytes=TOKEN_BYTES[:50])
    broken = model()
    broken.head.weight.data[3] = math.nan
    with pytest.raises(TrainingError, match="not finite"):
        evaluate(broken, rows)
    with pytest.raises(TrainingError, match="no text"):
        evaluate_rows(model(), rows, token_bytes=np.zeros(VOCAB, np.int64))


def test_figures_are_flat_json_without_an_interval_of_one_document(tmp_path):
    rows = packed(tmp_path / "packed", documents(1, 60, seed=5))
    values = evaluate(model(), rows).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert "bits_per_byte_low" not in values
    assert values["documents"] == 1


# --------------------------------------------------------------------------- the interval


@pytest.mark.parametrize(
    ("degrees", "at_90", "at_975"),  # from the usual table
    [
        (1, 3.0777, 12.7062),
        (2, 1.8856, 4.3027),
        (3, 1.6377, 3.1824),
        (5, 1.4759, 2.5706),
        (10, 1.3722, 2.2281),
        (30, 1.3104, 2.0423),
        (1000, 1.2824, 1.9623),
    ],
)
def test_student_quantiles(degrees, at_90, at_975):
    assert student_quantile(0.9, degrees) == pytest.approx(at_90, rel=2e-3)
    assert student_quantile(0.975, degrees) == pytest.approx(at_975, rel=2e-3)


@pytest.mark.parametrize("num", [8, 40])
def test_the_interval_covers_the_truth_as_often_as_it_says(num):
    draw = np.random.default_rng(7)
    covered, runs = 0, 2000
    for _ in range(runs):
        sizes = draw.lognormal(6, 0.5, num)
        rates = 1.3 + 0.3 * draw.standard_normal(num)  # of each document, so the truth is 1.3
        low, high = ratio_interval(rates * sizes, sizes, 0.9)
        covered += low < 1.3 < high
    assert 0.86 <= covered / runs <= 0.93


def test_tokens_of_a_document_count_as_one_measurement():
    # the same measurements, once as 10 documents and once as 1000 pieces thought independent
    draw = np.random.default_rng(3)
    rates = np.repeat(1 + 0.2 * draw.standard_normal(10), 100)
    pieces = ratio_interval(rates, np.ones(1000), 0.95)
    whole = ratio_interval(rates.reshape(10, 100).sum(1), np.full(10, 100.0), 0.95)
    assert whole[1] - whole[0] > 8 * (pieces[1] - pieces[0])


def test_the_variance_is_that_of_leaving_documents_out():
    draw = np.random.default_rng(11)
    x, b = draw.uniform(1, 3, 6), draw.uniform(1, 2, 6)
    ratio = x.sum() / b.sum()
    without = np.array([np.delete(x, k).sum() / np.delete(b, k).sum() for k in range(6)])
    margin = 2.5706 * math.sqrt(5 / 6 * ((without - ratio) ** 2).sum())
    assert ratio_interval(x, b, 0.95) == pytest.approx((ratio - margin, ratio + margin), rel=1e-4)


def test_equal_documents_have_no_spread_and_one_document_no_interval():
    assert ratio_interval(np.full(5, 2.0), np.full(5, 4.0), 0.95) == (0.5, 0.5)
    assert ratio_interval(np.ones(1), np.ones(1), 0.95) is None
