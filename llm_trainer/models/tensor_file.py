"""Writing safetensors: tensor by tensor, hashed on the way.

The bytes are those of the safetensors library, which reads them. Its own writer holds Python's
lock for as long as the disk takes, so a training could not go on beside it, and leaves the file to
be read again for its digest. Price: these lines, and a test that compares them with the library's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

DTYPES = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32,
    "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16,
    "U16": torch.uint16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""Names of types in the format, in the order in which tensors of them lie in a file."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {name: rank for rank, name in enumerate(DTYPES)}
_PIECE = 2**20
"""Bytes that are hashed and written at once, so that both find them in the processor's cache."""


class FileEntry(TypedDict):
    """A file as a manifest lists it."""

    bytes: int
    sha256: str


def dtype_name(tensor: Tensor) -> str:
    """The format's name of a tensor's type, such as F32."""
    return _NAMES[tensor.dtype]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> FileEntry:
    """Write contiguous tensors on the CPU as a safetensors file; return its size and digest.

    Not synced: the writer of the whole directory does that.

    Raises:
        OSError: as the system gave it: no space, no permission.
    """
    ordered = sorted(tensors, key=lambda name: (_RANKS[dtype_name(tensors[name])], name))
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    end = 0
    for name in ordered:
        tensor = tensors[name]
        assert tensor.device.type == "cpu"
        assert tensor.is_contiguous()
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": dtype_name(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        start = memoryview(len(text).to_bytes(8, "little") + text)
        for view in (start, *(_bytes(tensors[name]) for name in ordered)):
            for begin in range(0, len(view), _PIECE):
                piece = view[begin : begin + _PIECE]
                digest.update(piece)
                _write(file.fileno(), piece)
            size += len(view)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _write(descriptor: int, data: memoryview) -> None:
    while data:  # a write may be cut short; the next one then says why
        data = data[os.write(descriptor, data) :]
