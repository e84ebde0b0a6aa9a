"""tokenizer.json and tokenizer_config.json of other makers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from fuzz.target import Draw, Target, damage, dump, folder, mutate
from fuzz.worlds import noise, tokenizer_folder
from llm_trainer.exceptions import LLMTrainerError
from llm_trainer.tokenizer.bpe import BPETokenizer
from llm_trainer.tokenizer.encoder import FastEncoder

_NAMES = ("tokenizer.json", "tokenizer_config.json")
_TEXT = "naïve <|endoftext|> 日本 12345\r\n\t x"


@cache
def _place() -> tuple[Path, dict[str, bytes]]:
    # without a manifest, as other makers have none
    return folder(), {name: (tokenizer_folder() / name).read_bytes() for name in _NAMES}


def seeds() -> list[bytes]:
    """For each file some decisions about its damage."""
    return [bytes([n, how]) + noise(7 * n + how, 30) for n in range(2) for how in range(3)]


def run(data: bytes) -> None:
    """Two bytes say which file and how it is changed; the rest decides where, or is the file."""
    draw = Draw(data)
    name, how = draw.choice(_NAMES), draw.number(3)
    directory, good = _place()
    if how == 0:
        content = draw.rest()
    elif how == 1:
        content = damage(good[name], draw)
    else:
        content = dump(mutate(json.loads(good[name]), draw))
    for other in _NAMES:
        (directory / other).write_bytes(content if other == name else good[other])
    try:
        tokenizer = BPETokenizer.from_pretrained(directory)
        ids = tokenizer.encode(_TEXT, add_special_tokens=False)
    except LLMTrainerError:
        return
    assert tokenizer.decode(ids) == _TEXT
    assert not set(ids) & set(tokenizer.definition.control.values())
    assert FastEncoder(tokenizer).encode(_TEXT).tolist() == ids


TARGET = Target("tokenizers", seeds, run)
