"""Weights as Hugging Face stores them: one safetensors file, or several and an index.

Written tensor by tensor, so that memory holds one file's worth; read tensor by tensor from names
and shapes that were checked first. Pickles (`pytorch_model.bin`) are refused: loading one can run
any code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm_trainer.exceptions import ConfigurationError, IntegrityError
from llm_trainer.files import write_json
from llm_trainer.json_file import read_json
from llm_trainer.models.storage import WEIGHTS_NAME
from llm_trainer.models.tensor_file import write_tensors

INDEX_NAME = "model.safetensors.index.json"
METADATA = {"format": "pt"}
"""Without it `transformers` refuses a file."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that can be read; float32 holds each of them exactly."""

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str | int) -> int:
    """Bytes, from a whole number or a text such as 5GB, 500MB, 2GiB.

    Raises:
        ConfigurationError: it is no size, or 0.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([KMG]I?B|B|)", str(text).strip().upper())
    size = int(float(found[1]) * _UNITS[found[2] or "B"]) if found else 0
    if size < 1:
        raise ConfigurationError(
            f"max_shard_size ({text!r}) must be a size such as 5GB, 500MB or 2GiB"
        )
    return size


# --------------------------------------------------------------------------- writing


def write_weights(
    directory: Path, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, max_bytes: int
) -> list[str]:
    """Write name -> tensor into `directory`, in order; return the files' names.

    A file has at most `max_bytes` of tensors, but at least one tensor. One file is
    model.safetensors; several are numbered, with an index beside them.
    """
    places: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    held = total = num_shards = 0

    def flush() -> None:
        write_tensors(_unnamed(directory, num_shards), shard, METADATA)
        shard.clear()

    for name, tensor in tensors:
        stored = tensor.detach().to("cpu", dtype).contiguous()
        size = stored.numel() * stored.element_size()
        if shard and held + size > max_bytes:
            flush()
            num_shards, held = num_shards + 1, 0
        shard[name] = stored
        places[name] = num_shards
        held, total = held + size, total + size
    flush()
    num_shards += 1
    if num_shards == 1:
        names = [WEIGHTS_NAME]
    else:
        names = [f"model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
        weight_map = {name: names[place] for name, place in places.items()}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / INDEX_NAME, index)
    for number, name in enumerate(names):
        _unnamed(directory, number).rename(directory / name)
    return names


def _unnamed(directory: Path, number: int) -> Path:
    """A file whose final name needs the number of all."""
    return directory / f"shard-{number}.safetensors"


# --------------------------------------------------------------------------- reading


class StoredWeights(Mapping[str, Tensor]):
    """Name -> tensor over the safetensors files of a directory, read one at a time.

    Args:
        directory: has model.safetensors, or its index and the files that it names.

    Raises:
        IntegrityError: there are none, or they are damaged, or the index does not fit them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, Any] = {}
        if (directory / WEIGHTS_NAME).is_file():
            for name in self._open(WEIGHTS_NAME):
                self._files[name] = WEIGHTS_NAME
        elif (directory / INDEX_NAME).is_file():
            self._files = self._read_index()
        else:
            raise IntegrityError(_no_weights(directory))

    def __getitem__(self, name: str) -> Tensor:
        """The tensor as float32."""
        with self._handle(self._files[name]) as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor.float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, from the files' headers.

        Raises:
            IntegrityError: a tensor is not of floating point.
        """
        found: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(self._files.values())):
            with self._handle(file) as handle:
                for name in handle.keys():  # noqa: SIM118 - no mapping
                    kind = handle.get_slice(name).get_dtype()
                    if kind not in FLOATS:
                        raise IntegrityError(
                            f"{self.directory / file}: {name} is {kind}; only {', '.join(FLOATS)} "
                            f"can be read"
                        )
                    found[name] = tuple(handle.get_slice(name).get_shape())
        return found

    def _read_index(self) -> dict[str, str]:
        path = self.directory / INDEX_NAME
        index = read_json(path)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise IntegrityError(f"{path}: has no weight_map")
        for file in weight_map.values():
            # a plain name: an index may come from anywhere, and must not lead out of its directory
            if not isinstance(file, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", file):
                raise IntegrityError(
                    f"{path}: weight_map names {file!r}; it must be a .safetensors file beside it"
                )
        for file in sorted(set(weight_map.values())):
            listed = {name for name, place in weight_map.items() if place == file}
            found = set(self._open(file))
            if listed != found:
                raise IntegrityError(
                    f"{self.directory / file}: has other tensors than {INDEX_NAME} lists, such as "
                    f"{min(listed ^ found)}; fetch both again"
                )
        return dict(weight_map)

    def _open(self, file: str) -> list[str]:
        if not (self.directory / file).is_file():
            raise IntegrityError(f"{self.directory / file}: file is missing; fetch it again")
        with self._handle(file) as handle:
            return list(handle.keys())

    def _handle(self, file: str) -> Any:
        try:
            return safe_open(self.directory / file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise IntegrityError(
                f"{self.directory / file}: not readable as safetensors ({error})"
            ) from error


def _no_weights(directory: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        return (
            f"{directory}: has its weights as {', '.join(pickles[:3])} only. That is a pickle, and "
            f"loading one can run any code; get the model as safetensors, or convert it where you "
            f"trust it"
        )
    return f"{directory}: has no {WEIGHTS_NAME} and no {INDEX_NAME}"
