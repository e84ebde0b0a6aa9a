"""Tensors in files: one `<stem>.safetensors`, or parts of rows with an index beside them.

A part `<stem>-00002-of-00004.safetensors` holds, under each tensor's name, a run of its rows
(slices along the first dimension), as a rank of a sharded training has them. `<stem>.index.json`
says of each tensor its type, its shape and in which file which rows are. Both forms are read the
same way, any rows of any tensor, so what 4 ranks wrote is read by 3, or by one process. Everything
the index says is compared with the files' headers before a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm_trainer.config.checks import shown
from llm_trainer.exceptions import IntegrityError
from llm_trainer.json_file import read_json
from llm_trainer.models.tensor_file import DTYPES

INDEX_FORMAT = 1


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor, in a file of their own."""

    file: str
    first: int
    """Number of the first row in the whole tensor."""
    rows: int


@dataclass(frozen=True)
class StoredTensor:
    """A whole tensor, as its pieces make it up."""

    dtype: str
    """As safetensors calls it: F32, BF16."""
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    """In the order of rows, without gap or overlap. A tensor without dimensions has one row."""

    @property
    def num_rows(self) -> int:
        """Length of the first dimension."""
        return self.shape[0] if self.shape else 1


def whole_name(stem: str) -> str:
    """The file of all tensors, where they are not in parts."""
    return f"{stem}.safetensors"


def index_name(stem: str) -> str:
    """The index of tensors in parts."""
    return f"{stem}.index.json"


def part_name(stem: str, number: int, count: int) -> str:
    """The file of part `number`, from 1, of `count`."""
    return f"{stem}-{number:05}-of-{count:05}.safetensors"


def index_values(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """What an index has, as JSON."""
    return {
        "format": INDEX_FORMAT,
        "tensors": {
            name: {
                "dtype": stored.dtype,
                "shape": list(stored.shape),
                "pieces": [[piece.file, piece.first, piece.rows] for piece in stored.pieces],
            }
            for name, stored in tensors.items()
        },
    }


def stored_of(values: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The inverse of `index_values`; the values are checked, or this process's own."""
    return {
        name: StoredTensor(
            entry["dtype"], tuple(entry["shape"]), tuple(Piece(*piece) for piece in entry["pieces"])
        )
        for name, entry in values["tensors"].items()
    }


class StoredTensors(Mapping[str, Tensor]):
    """Name -> tensor over the files of one stem in a directory; read when asked for.

    Args:
        directory: has `<stem>.safetensors`, or `<stem>.index.json` and the parts that it names.
        stem: such as "model".
        remedy: what the user should do about damage, for the messages.

    Raises:
        IntegrityError: files missing or no safetensors, or an index that does not fit them; names
            the file.
    """

    def __init__(self, directory: Path, stem: str, remedy: str) -> None:
        self.path = directory / whole_name(stem)
        """What messages name: the file, or the index."""
        self._remedy = remedy
        self._files: dict[str, Any] = {}
        index = directory / index_name(stem)
        if not index.exists():
            self.stored = self._of_file(self.path)
            return
        if self.path.exists():
            raise IntegrityError(
                f"{directory}: has {self.path.name} and {index.name}, so which of them counts is "
                f"unknown; {remedy}"
            )
        self.path = index
        self.stored = self._of_index(stem)

    def __iter__(self) -> Any:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor."""
        return self.rows(name, 0, self.stored[name].num_rows)

    def rows(self, name: str, first: int, rows: int) -> Tensor:
        """Rows [first, first + rows) of a tensor: (rows, ...); its only one if it has no dimension.

        Raises:
            IntegrityError: a file cannot be read.
        """
        stored = self.stored[name]
        assert first >= 0
        assert first + rows <= stored.num_rows
        if not stored.shape:
            return self._read(stored.pieces[0].file, name, None)
        found = [
            self._read(
                piece.file,
                name,
                slice(max(first - piece.first, 0), min(first + rows - piece.first, piece.rows)),
            )
            for piece in stored.pieces
            if piece.first < first + rows and first < piece.first + piece.rows
        ]
        if not found:
            return torch.empty((0, *stored.shape[1:]), dtype=DTYPES[stored.dtype])
        return found[0] if len(found) == 1 else torch.cat(found)

    def _read(self, file: str, name: str, part: slice | None) -> Tensor:
        try:
            handle = self._files[file]
            tensor: Tensor = (
                handle.get_tensor(name) if part is None else handle.get_slice(name)[part]
            )
        except (SafetensorError, OSError) as error:
            raise self._damaged(self.path.parent / file, f"not readable ({error})") from error
        return tensor

    # ------------------------------------------------------------------ what is there

    def _of_file(self, path: Path) -> dict[str, StoredTensor]:
        return {
            name: StoredTensor(dtype, shape, (Piece(path.name, 0, shape[0] if shape else 1),))
            for name, (dtype, shape) in self._header(path).items()
        }

    def _of_index(self, stem: str) -> dict[str, StoredTensor]:
        values = read_json(self.path)
        tensors = values.get("tensors") if isinstance(values, dict) else None
        if not isinstance(tensors, dict) or values.get("format") != INDEX_FORMAT:
            raise self._damaged(self.path, f"not an index of format {INDEX_FORMAT}")
        for name, entry in tensors.items():
            self._check_entry(stem, name, entry)
        stored = stored_of(values)
        self._compare(stored)
        return stored

    def _check_entry(self, stem: str, name: str, entry: Any) -> None:
        """One tensor of the index: well formed, and each of its rows in one piece."""

        def refuse(why: str) -> IntegrityError:
            return self._damaged(self.path, f"{shown(name)}: {why}")

        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "pieces"}:
            raise refuse(f"{shown(entry)} is not a dtype, a shape and pieces")
        dtype, shape, pieces = entry["dtype"], entry["shape"], entry["pieces"]
        if dtype not in DTYPES:
            raise refuse(f"dtype {shown(dtype)} is unknown")
        if not isinstance(shape, list) or not all(map(_is_size, shape)):
            raise refuse(f"shape {shown(shape)} is no list of sizes")
        if not isinstance(pieces, list) or not all(map(_is_piece, pieces)):
            raise refuse(f"pieces {shown(pieces)} are not [file, first row, rows]")
        end = 0
        for file, first, rows in pieces:
            # a plain name of ours: an index may come from anywhere, and must not lead elsewhere
            if not re.fullmatch(re.escape(stem) + r"-[0-9]{5}-of-[0-9]{5}\.safetensors", file):
                raise refuse(f"{shown(file)} is not the name of a part beside the index")
            if first != end or rows < 1:
                what = "overlaps the one before" if first < end else "leaves a gap"
                what = what if first != end else "is empty"
                raise refuse(f"the piece of {rows:,} rows from row {first:,} in {file} {what}")
            end = first + rows
        rows = shape[0] if shape else 1
        if end != rows:
            raise refuse(f"its pieces are {end:,} of {rows:,} rows")

    def _compare(self, stored: Mapping[str, StoredTensor]) -> None:
        """Each file has what the index says is in it, and nothing else."""
        listed: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
        for name, tensor in stored.items():
            for piece in tensor.pieces:
                shape = (piece.rows, *tensor.shape[1:]) if tensor.shape else ()
                listed.setdefault(piece.file, {})[name] = (tensor.dtype, shape)
        for file, expected in sorted(listed.items()):
            path = self.path.parent / file
            found = self._header(path)
            for name in sorted(set(found) | set(expected)):
                if found.get(name) != expected.get(name):
                    raise self._damaged(
                        path,
                        f"{shown(name)} is {_told(found.get(name))}, but {self.path.name} says "
                        f"{_told(expected.get(name))}",
                    )

    def _header(self, path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
        if not path.is_file():
            raise self._damaged(path, "file is missing")
        try:
            handle = safe_open(path, framework="pt")
            self._files[path.name] = handle
            found = {}
            for name in handle.keys():  # noqa: SIM118 - no mapping
                part = handle.get_slice(name)
                found[name] = (part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise self._damaged(path, f"not readable as safetensors ({error})") from error
        for name, (dtype, _) in found.items():
            if dtype not in DTYPES:
                raise self._damaged(path, f"{shown(name)} is of type {dtype}, which is unknown")
        return found

    def _damaged(self, path: Path, what: str) -> IntegrityError:
        return IntegrityError(f"{path}: {what}; {self._remedy}")


def join_pieces(parts: Iterable[Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """One index of what each rank wrote: together all rows of each tensor, once."""
    joined: dict[str, StoredTensor] = {}
    for part in parts:
        for name, stored in part.items():
            known = joined.get(name)
            pieces = stored.pieces if known is None else known.pieces + stored.pieces
            assert known is None or (known.dtype, known.shape) == (stored.dtype, stored.shape)
            joined[name] = StoredTensor(stored.dtype, stored.shape, pieces)
    complete = {}
    for name, stored in sorted(joined.items()):
        pieces = tuple(sorted(stored.pieces, key=lambda piece: piece.first))
        ends = [0, *(piece.first + piece.rows for piece in pieces)]
        assert [piece.first for piece in pieces] == ends[:-1], name
        assert ends[-1] == stored.num_rows, name
        complete[name] = StoredTensor(stored.dtype, stored.shape, pieces)
    return complete


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _is_piece(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and _is_size(value[1])
        and _is_size(value[2])
    )


def _told(what: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if what is None else f"{what[0]} {what[1]}"
