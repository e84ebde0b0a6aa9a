"""Figures about a model and about the texts that it writes.

Words are what whitespace separates. Shares are from 0 to 1, BLEU and chrF from 0 to 100 as
sacrebleu gives them. Texts without words count as 0 rather than as an error, since a model may
well write nothing; no texts at all are an error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

from llm_trainer.config.checks import instance, iterable, refuse, shown
from llm_trainer.config.checks import texts as is_texts
from llm_trainer.exceptions import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llm_trainer.models.transformer import TransformerLM

MAX_LOG_PERPLEXITY = 700.0
"""Perplexity is cut at e^700, where float64 ends; only a diverged model comes near."""


# --------------------------------------------------------------------------- of a model


def compute_perplexity(
    model: TransformerLM,
    dataloader: Iterable[Mapping[str, Tensor] | Tensor],
    device: torch.device | str | None = None,
) -> float:
    """exp of the mean negative log-likelihood of all targets of all batches.

    Every target counts once and alike, whatever the batch size and however batches are padded:
    sums are taken in float64. The model's mode is restored.

    Args:
        model: moved to `device` if one is given.
        dataloader: batches of ids, (batch, time) long, or mappings with `input_ids` and maybe
            `labels` (the ids themselves, -100 where there is no target) and `attention_mask`.
            Without labels every unmasked token but the first of a row is a target.
        device: where to compute; None is where the model is.

    Raises:
        DataError: no batches, a batch without ids, or no targets.
    """
    import torch

    from llm_trainer.models.checks import language_model
    from llm_trainer.utils.device import get_device

    refuse(DataError, language_model("model", model), iterable("dataloader", dataloader, "batches"))
    if device is not None:
        model.to(get_device(device))
    training = model.training
    model.eval()
    nats, targets, batches = 0.0, 0, 0
    try:
        with torch.no_grad():
            for batch in dataloader:
                batches += 1
                sums = _batch_loss(model, batch)
                nats, targets = nats + sums[0], targets + sums[1]
    finally:
        model.train(training)
    if not targets:
        found = f"{batches} batches without a target" if batches else "no batches"
        raise DataError(f"dataloader: {found}; perplexity needs rows of at least two tokens")
    return math.exp(min(nats / targets, MAX_LOG_PERPLEXITY))


def _batch_loss(model: TransformerLM, batch: Mapping[str, Tensor] | Tensor) -> tuple[float, int]:
    """Summed negative log-likelihood of a batch in nats, and its number of targets."""
    import torch
    import torch.nn.functional as F

    from llm_trainer.models.checks import IGNORED

    fields = batch if isinstance(batch, Mapping) else {"input_ids": batch}
    for name in fields.keys() & {"input_ids", "attention_mask", "labels"}:
        refuse(DataError, instance(f"dataloader: {name} of a batch", fields[name], torch.Tensor))
    if "input_ids" not in fields:
        raise DataError(
            f"dataloader: a batch is a dict of {sorted(fields) or 'nothing'}, without input_ids; "
            f"give batches of ids, or mappings that have some"
        )
    ids = fields["input_ids"].to(model.device)
    mask = fields["attention_mask"].to(model.device) if "attention_mask" in fields else None
    labels = fields["labels"].to(model.device) if "labels" in fields else ids
    if "labels" not in fields and mask is not None:
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, 1:].masked_fill_(mask[:, :-1] == 0, IGNORED)  # a row's first token is no target
    logits = model(ids, attention_mask=mask).logits[:, :-1].float()
    losses = F.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    return float(losses.double().sum()), int((labels[:, 1:] != IGNORED).sum())


# --------------------------------------------------------------------------- of texts


def compute_bleu_score(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> float:
    """Corpus BLEU by sacrebleu with its defaults, from 0 to 100.

    Args:
        predictions: one text each.
        references: for each prediction one text, or a list of texts.

    Raises:
        DataError: no predictions, or not one reference for each.
    """
    streams = _reference_streams(predictions, references)
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(predictions), streams).score)


def compute_diversity_metrics(texts: Sequence[str]) -> dict[str, float]:
    """How varied texts are, over all of them together.

    `distinct_1` to `distinct_4`: different n-grams of words / all of them (Li et al. 2016);
    `entropy_1`, `entropy_2`: of their distribution, in bits; `vocabulary_size`: different words;
    `unique_texts`: share of texts that differ from all before.

    Raises:
        DataError: no texts.
    """
    refuse(DataError, is_texts("texts", texts))
    rows = [text.split() for text in texts]
    metrics: dict[str, float] = {}
    for n in range(1, 5):
        counts = Counter(gram for words in rows for gram in _ngrams(words, n))
        metrics[f"distinct_{n}"] = _share(len(counts), counts.total())
        if n <= 2:
            metrics[f"entropy_{n}"] = _entropy(counts)
    metrics["vocabulary_size"] = float(len({word for words in rows for word in words}))
    metrics["unique_texts"] = len(set(texts)) / len(texts)
    return metrics


def compute_repetition_metrics(texts: Sequence[str]) -> dict[str, float]:
    """How much texts repeat themselves, each within itself; means over texts.

    `repetition_2` to `repetition_4`: share of n-grams of words that came before in the text
    (seq-rep-n of Welleck et al. 2020); `repeated_words`: share of words equal to the one before;
    `repeated_lines`: share of lines, blank ones aside, that came before; `longest_run`: words in
    the longest run of one word.

    Raises:
        DataError: no texts.
    """
    refuse(DataError, is_texts("texts", texts))
    totals: Counter[str] = Counter()
    sums: dict[str, float] = {}
    for text in texts:
        for name, value in _repetition(text).items():
            sums[name] = sums.get(name, 0.0) + value
            totals[name] += 1
    return {name: value / totals[name] for name, value in sums.items()}


def evaluate_generation_quality(
    generated: Sequence[str] | None = None,
    references: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    generated_texts: Sequence[str] | None = None,
    reference_texts: Sequence[str] | Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Diversity and repetition of texts, and `bleu` and `chrf` if there are references.

    `generated_texts` and `reference_texts` are other names of the first two arguments. Adds
    `mean_words` and `mean_characters` of the texts.

    Raises:
        DataError: no texts, both names of an argument, or not one reference for each text.
    """
    texts = _either("generated", generated, "generated_texts", generated_texts)
    wanted = _either("references", references, "reference_texts", reference_texts)
    if texts is None:
        raise DataError("generated is missing; give the texts to judge")
    refuse(DataError, is_texts("generated", texts))
    metrics = compute_diversity_metrics(texts) | compute_repetition_metrics(texts)
    metrics["mean_words"] = sum(len(text.split()) for text in texts) / len(texts)
    metrics["mean_characters"] = sum(map(len, texts)) / len(texts)
    if wanted is not None:
        streams = _reference_streams(texts, wanted)
        import sacrebleu

        metrics["bleu"] = compute_bleu_score(texts, wanted)
        metrics["chrf"] = float(sacrebleu.corpus_chrf(list(texts), streams).score)
    return metrics


# --------------------------------------------------------------------------- inside


def _repetition(text: str) -> dict[str, float]:
    words = text.split()
    values = {}
    for n in range(2, 5):
        grams = _ngrams(words, n)
        values[f"repetition_{n}"] = _share(len(grams) - len(set(grams)), len(grams))
    values["repeated_words"] = _share(sum(a == b for a, b in pairwise(words)), len(words) - 1)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    values["repeated_lines"] = _share(len(lines) - len(set(lines)), len(lines))
    run = longest = min(1, len(words))
    for a, b in pairwise(words):
        run = run + 1 if a == b else 1
        longest = max(longest, run)
    values["longest_run"] = float(longest)
    return values


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _share(part: int, whole: int) -> float:
    return part / whole if whole > 0 else 0.0


def _entropy(counts: Counter[tuple[str, ...]]) -> float:
    total = counts.total()
    return -sum(c / total * math.log2(c / total) for c in counts.values()) + 0.0


def _either(name: str, value: Any, other_name: str, other: Any) -> Any:
    if value is not None and other is not None:
        raise DataError(f"{name} and {other_name} are the same argument; give one of them")
    return value if value is not None else other


def _reference_streams(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> list[list[str]]:
    """sacrebleu's form: the first reference of each prediction, the second of each, and so on.

    Where one has fewer there is None, which sacrebleu leaves out, though its types do not say so.
    """
    refuse(DataError, is_texts("predictions", predictions))
    single = isinstance(references, str | bytes) or not isinstance(references, Collection)
    if single or len(references) != len(predictions):
        found = "one text" if isinstance(references, str) else shown(references)
        found = found if single else f"{len(references)} references"
        raise DataError(
            f"references: {found} for {len(predictions)} predictions; give a reference, or a list "
            f"of them, for each"
        )
    rows = [[entry] if isinstance(entry, str) else entry for entry in references]
    refuse(
        DataError,
        *(is_texts(f"references of prediction {n}", row) for n, row in enumerate(rows)),
    )
    return [list(stream) for stream in zip_longest(*rows)]
