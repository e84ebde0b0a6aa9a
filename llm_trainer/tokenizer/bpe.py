"""BPETokenizer: text to ids and back, without loss.

How: byte-level BPE by `tokenizers`. All 256 bytes are tokens, so there is no unknown token and any
valid Unicode text comes back exactly. Control tokens have ids that no text encodes to: the spelling
`<|endoftext|>` in a text is plain text, and the ids are only ever placed by number.
Price: 2.5 MB/s a core here; `FastEncoder` gives the same ids at 10 MB/s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from llm_trainer.config.checks import flags, iterable, refuse, shown
from llm_trainer.exceptions import TokenizerError, TokenizerNotTrainedException
from llm_trainer.tokenizer import storage
from llm_trainer.tokenizer.definition import Definition
from llm_trainer.tokenizer.fork import allow_forks
from llm_trainer.tokenizer.patterns import PatternName
from llm_trainer.tokenizer.text import check_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class BPETokenizer:
    """Byte-level BPE tokenizer.

    A new one knows nothing: train it, or load one with `from_pretrained`. Before that `vocab` and
    `special_tokens` are empty, `vocab_size` is 0, and whatever needs a vocabulary raises
    `TokenizerNotTrainedException`.
    """

    def __init__(self) -> None:
        allow_forks()
        self._stored: storage.Stored | None = None
        self._backend: Tokenizer | None = None

    # ------------------------------------------------------------------ making one

    def train(
        self,
        texts: Iterable[str],
        vocab_size: int = 50000,
        *,
        min_frequency: int = 2,
        pattern: PatternName = "gpt4",
        show_progress: bool = False,
    ) -> None:
        """Learn merges from `texts`; what was learned before is forgotten.

        Args:
            texts: read once; may be a generator.
            vocab_size: tokens wanted, control tokens included, at least 257. If the texts have
                fewer pairs, one warning is logged and `vocab_size` is what there is.
            min_frequency: a pair must occur this often to be merged.
            pattern: how text is cut into words, see `patterns`.
            show_progress: bars on the terminal.

        Raises:
            TokenizerError: an impossible setting, no text at all, or a text with a lone surrogate.
        """
        # Imported where they are used: a stage that only encodes does not depend on them.
        from llm_trainer.tokenizer.training import train_definition

        definition = train_definition(
            texts,
            vocab_size,
            min_frequency=min_frequency,
            pattern=pattern,
            show_progress=show_progress,
        )
        control = list(definition.control)
        self._set(storage.Stored(definition, end_token=control[0], pad_token=control[-1]))

    def train_from_dataset(
        self,
        dataset_name: str,
        vocab_size: int = 50000,
        *,
        dataset_config: str | None = None,
        dataset_split: str = "train",
        text_column: str = "text",
        revision: str | None = None,
        streaming: bool = False,
        max_documents: int | None = None,
        min_frequency: int = 2,
        pattern: PatternName = "gpt4",
        show_progress: bool = False,
    ) -> None:
        """Learn merges from the training documents of a data set.

        They are those that the pipeline would train on: what validates is left out.

        Args:
            dataset_name: `python-stdlib`, or a Hugging Face data set; old bare names work.
            vocab_size: see `train`.
            dataset_config: configuration (subset) of the data set.
            dataset_split: split to read.
            text_column: column that holds the text.
            revision: commit, tag or branch of the data set.
            streaming: read it as a stream instead of downloading all of it first.
            max_documents: stop after this many documents.
            min_frequency: see `train`.
            pattern: see `train`.
            show_progress: bars on the terminal.

        Raises:
            DataError: the data set cannot be found or read.
            TokenizerError: see `train`.
        """
        # Sources of text are a room below: they know neither tokenizers nor models.
        from llm_trainer.config.data import SourceConfig
        from llm_trainer.data.ledger import Ledger
        from llm_trainer.data.sources import iter_documents

        held_out = SourceConfig.validation_split
        config = SourceConfig(
            dataset_name=dataset_name,
            dataset_config=dataset_config,
            dataset_split=dataset_split,
            validation_split=None if dataset_split == held_out else held_out,
            text_column=text_column,
            revision=revision,
            streaming=streaming,
            max_documents=max_documents,
        )
        documents = iter_documents(config, "train", Ledger("train_from_dataset"))
        self.train(
            (document.text for document in documents),
            vocab_size,
            min_frequency=min_frequency,
            pattern=pattern,
            show_progress=show_progress,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write a directory that `from_pretrained` and `transformers.AutoTokenizer` open.

        Raises:
            TokenizerNotTrainedException: there is nothing to save.
            TokenizerError: the directory holds other files.
        """
        storage.save(self._trained(), save_directory)

    @classmethod
    def from_pretrained(cls, load_directory: str | os.PathLike[str]) -> Self:
        """Load from a local directory: ours, or any byte-level BPE `tokenizer.json`.

        Raises:
            TokenizerError: no such directory, or no byte-level BPE tokenizer.
            IntegrityError: a file is damaged or differs from its manifest.
        """
        tokenizer = cls()
        tokenizer._set(storage.load(load_directory))
        return tokenizer

    # ------------------------------------------------------------------ using it

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`, and the end token after them unless `add_special_tokens` is off.

        Raises:
            TokenizerError: `text` is no string or holds a lone surrogate.
        """
        backend = self._ready()
        refuse(TokenizerError, flags(add_special_tokens=add_special_tokens))
        ids: list[int] = backend.encode(check_text(text, "text"), add_special_tokens=False).ids
        return [*ids, self.end_id] if add_special_tokens else ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, without special tokens: uint32 arrays of shape (tokens,).

        Raises:
            TokenizerError: a text is no string or holds a lone surrogate.
        """
        backend = self._ready()
        refuse(TokenizerError, iterable("texts", texts))
        checked = [check_text(text, f"text {number:,}") for number, text in enumerate(texts)]
        encodings = backend.encode_batch_fast(checked, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text that ids stand for; bytes that are no UTF-8 become U+FFFD.

        Args:
            token_ids: a list, an array or a one-dimensional tensor of ids; one id works too.
            skip_special_tokens: leave control tokens out instead of spelling them.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        backend = self._ready()
        refuse(TokenizerError, flags(skip_special_tokens=skip_special_tokens))
        ids = self._check_ids(token_ids)
        text: str = backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int64: UTF-8 bytes of text each id stands for; 0 for control tokens."""
        values = self.definition.token_values()
        return np.array([len(value) for value in values], np.int64)

    def get_vocab_stats(self) -> dict[str, Any]:
        """Counts over the vocabulary, see `statistics.vocabulary_stats`."""
        from llm_trainer.tokenizer.statistics import vocabulary_stats

        return vocabulary_stats(self.definition)

    # ------------------------------------------------------------------ what it is

    @property
    def is_trained(self) -> bool:
        """Whether there is a vocabulary."""
        return self._stored is not None

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included; 0 before training."""
        return self._stored.definition.size if self._stored else 0

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def vocab(self) -> dict[str, int]:
        """Token to id, in order of ids; tokens are spelled in the byte-level alphabet."""
        return dict(self._stored.definition.vocab) if self._stored else {}

    @property
    def special_tokens(self) -> list[str]:
        """Control tokens, in order of ids."""
        return list(self._stored.definition.control) if self._stored else []

    @property
    def end_id(self) -> int:
        """Id that ends a document and starts the next."""
        stored = self._trained()
        return stored.definition.control[stored.end_token]

    @property
    def pad_id(self) -> int:
        """Id that fills rows; the end token's where the vocabulary has no other."""
        stored = self._trained()
        return stored.definition.control[stored.pad_token]

    @property
    def digest(self) -> str:
        """sha256 of `tokenizer.json` as `save_pretrained` writes it."""
        return self.definition.digest

    @property
    def definition(self) -> Definition:
        """Vocabulary, merges and pattern."""
        return self._trained().definition

    def __repr__(self) -> str:
        what = (
            f"vocab_size={self.vocab_size}, digest={self.digest[:12]}"
            if self.is_trained
            else "untrained"
        )
        return f"{type(self).__name__}({what})"

    # ------------------------------------------------------------------ inside

    def _set(self, stored: storage.Stored) -> None:
        self._backend = _build(stored.definition)
        self._stored = stored

    def _trained(self) -> storage.Stored:
        if self._stored is None:
            raise TokenizerNotTrainedException(
                "the tokenizer is not trained; call train or train_from_dataset, or load one with "
                "BPETokenizer.from_pretrained"
            )
        return self._stored

    def _ready(self) -> Tokenizer:
        self._trained()
        assert self._backend is not None
        return self._backend

    def _check_ids(self, token_ids: Iterable[int]) -> list[int]:
        try:
            ids = np.asarray(token_ids)
            if ids.size == 0:
                return []
            if ids.dtype.kind not in "iu" or ids.ndim > 1:
                raise TypeError(f"{ids.dtype} of shape {ids.shape}")
        except (TypeError, ValueError) as error:
            raise TokenizerError(
                f"token_ids ({shown(token_ids)}) must be one sequence of whole numbers ({error})"
            ) from None
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise TokenizerError(
                f"token id {low if low < 0 else high} is outside the vocabulary of "
                f"{self.vocab_size:,} tokens; use the tokenizer that it was made with"
            )
        result: list[int] = np.atleast_1d(ids).tolist()
        return result

    # A copy in another process is built anew: `tokenizers` forgets a setting when it is pickled.

    def __getstate__(self) -> dict[str, Any]:
        return {"stored": self._stored}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        if state["stored"] is not None:
            self._set(state["stored"])


def _build(definition: Definition) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(definition.text)
    except Exception as error:  # the library raises the bare class
        raise TokenizerError(f"the tokenizers library refuses the definition: {error}") from error
    # Not saved by the library in any form, so it is set on every way that leads here: without it
    # text with the spelling of a control token would become the control token.
    backend.encode_special_tokens = True
    return backend
