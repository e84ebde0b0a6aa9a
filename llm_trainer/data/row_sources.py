"""From a row to the documents in it: which source texts a training step saw.

How: a row names its documents by number within the split; the raw files' footers say which row
group holds a number, and only that row group's `source` column is read.
Price: one column of one row group a document; the text itself is not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_trainer.data.packed_manifest import Split
from llm_trainer.data.raw_groups import group_sizes, read_group
from llm_trainer.data.shard_file import REMEDY
from llm_trainer.data.shards import PackedRows
from llm_trainer.exceptions import IntegrityError

if TYPE_CHECKING:
    from llm_trainer.data.raw import RawCorpus


def documents_in_row(packed: PackedRows, raw: RawCorpus, index: int) -> list[str]:
    """Source id of each document that has a piece in row `index`, in the order of the pieces.

    Raises:
        IndexError: no such row.
        IntegrityError: the rows were packed from another corpus.
    """
    if packed.manifest["raw_digest"] != raw.digest:
        raise IntegrityError(
            f"{packed.path}: packed from the corpus {packed.manifest['raw_digest'][:12]}, but "
            f"{raw.path} is {raw.digest[:12]}; {REMEDY}"
        )
    documents = packed.documents(index)
    sources = _read_sources(raw, packed.split, sorted(set(documents)))
    return [sources[document] for document in documents]


def _read_sources(raw: RawCorpus, split: Split, documents: list[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    first = 0  # number of the next row group's first document
    for path in raw.files(split):
        for group, size in enumerate(group_sizes(path)):
            wanted = [document for document in documents if first <= document < first + size]
            if wanted:
                column = read_group(path, group, "source")
                found |= {document: column[document - first].as_py() for document in wanted}
            first += size
        if len(found) == len(documents):
            return found
    raise AssertionError("the digests agree, so the corpus has these documents")
