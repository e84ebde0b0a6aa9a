"""The proof: `transformers` loads the files and computes what our model does.

Compared are the logits on fixed rows of tokens, the greedy continuations of a few prompts and the
token ids of a few texts, in float32 on the CPU, whatever the files' type: what is compared is the
weights as stored. Price: both models in memory, and some seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm_trainer.exceptions import ExportError, MissingDependencyError
from llm_trainer.export.comparing import (
    compare_greedy,
    compare_logits,
    compare_texts,
    generation_problems,
    largest_difference,
    load_their_model,
    quiet_transformers,
)
from llm_trainer.models.transformer import TransformerLM
from llm_trainer.tokenizer.bpe import BPETokenizer

PARITY_NAME = "parity.json"
PACKAGES = ("transformers", "tokenizers", "torch")


@dataclass
class Parity:
    """What was compared, and how it came out; the content of parity.json."""

    verified: bool
    """False if nobody looked."""
    packages: dict[str, str] = field(default_factory=dict)
    """Package -> version that computed."""
    logits: dict[str, float] = field(default_factory=dict)
    """positions, max_abs_difference, tolerance, largest, argmax_agreement (share)."""
    greedy: list[dict[str, Any]] = field(default_factory=list)
    """prompt, text and whether both are equal; up_to_tie where two tokens were equally likely."""
    tokenizer_texts: int = 0
    """Texts whose ids are equal and that decode to themselves; 0 without a tokenizer."""
    rounding: float = 0.0
    """Largest difference between logits of the stored weights and of those before rounding."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without figures if there are none."""
        return asdict(self) if self.verified else {"verified": False}

    def summary(self) -> str:
        """One line for people."""
        if not self.verified:
            return "not verified"
        text = (
            f"logits differ by at most {self.logits['max_abs_difference']:.1e} (allowed: "
            f"{self.logits['tolerance']:.1e}), {len(self.greedy)} greedy texts equal"
        )
        if self.tokenizer_texts:
            text += f", ids of {self.tokenizer_texts} texts equal"
        if self.rounding:
            text += f"; rounding the weights moved the logits by up to {self.rounding:.2g}"
        return text


def require_transformers() -> None:
    """Check that the other side of the comparison is there, before any work is done.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "the proof needs transformers, which is not installed: pip install 'llm-trainer[hf]' "
            "(or leave the proof out with --no-verify)"
        ) from None


def check_parity(
    directory: Path,
    model: TransformerLM,
    tokenizer: BPETokenizer | None,
    *,
    ours: bool,
    unrounded: TransformerLM | None = None,
) -> Parity:
    """Compare what `transformers` makes of `directory` with `model`, in float32 on the CPU.

    Args:
        directory: in the format of Hugging Face; no code in it is run, nothing is fetched.
        model: has the weights as they are stored there.
        tokenizer: the model's own; None compares token ids only.
        ours: we wrote the directory, so its generation settings and its treatment of text with
            the spelling of control tokens must be ours too.
        unrounded: the model before its weights were rounded to a shorter type, to tell by how
            much that moves the logits.

    Raises:
        MissingDependencyError: transformers is not installed.
        ExportError: anything differs; names all that does.
    """
    require_transformers()
    with quiet_transformers():
        theirs = load_their_model(directory)
        problems = generation_problems(theirs, model, tokenizer) if ours else []
        logits, wrong = compare_logits(model, theirs)
        problems += wrong
        greedy: list[dict[str, Any]] = []
        if not wrong:  # or the texts would only say it again
            greedy, wrong = compare_greedy(model, theirs, tokenizer, logits["tolerance"])
            problems += wrong
        texts = 0
        if tokenizer is not None:
            texts, wrong = compare_texts(directory, tokenizer, ours=ours)
            problems += wrong
    if problems:
        raise ExportError(
            "transformers does not compute what our model does: "
            + "; ".join(problems)
            + ". Nothing was written; please report this with the model's config.json"
        )
    return Parity(
        verified=True,
        packages={name: version(name) for name in PACKAGES},
        logits=logits,
        greedy=greedy,
        tokenizer_texts=texts,
        rounding=largest_difference(model, unrounded) if unrounded is not None else 0.0,
    )
