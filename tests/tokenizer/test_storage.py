"""Tokenizer directories: ours, those of other tools, damaged and hostile ones."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llm_trainer.exceptions import IntegrityError, LLMTrainerError, TokenizerError
from llm_trainer.manifests import read_manifest
from llm_trainer.tokenizer import BPETokenizer, FastEncoder
from tests.tokenizer.texts import CORPUS, HARD, library_files


@pytest.fixture
def saved(gpt4: BPETokenizer, tmp_path: Path) -> Path:
    gpt4.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(directory: Path, change, name: str = "tokenizer.json") -> None:  # type: ignore[no-untyped-def]
    """Change a JSON file of a directory, which then has no manifest."""
    (directory / "manifest.json").unlink(missing_ok=True)
    value = json.loads((directory / name).read_text())
    value = change(value) or value
    (directory / name).write_text(json.dumps(value))


# --------------------------------------------------------------------------- ours


def test_saved_and_loaded(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path / "a"))
    loaded = BPETokenizer.from_pretrained(str(tmp_path / "a"))
    assert loaded.vocab == tokenizer.vocab
    assert loaded.definition == tokenizer.definition
    assert (loaded.end_id, loaded.pad_id, loaded.digest) == (0, 1, tokenizer.digest)
    for text in [*HARD, *CORPUS]:
        assert loaded.encode(text) == tokenizer.encode(text)
    loaded.save_pretrained(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_digest_is_that_of_the_file(gpt4: BPETokenizer, saved: Path) -> None:
    data = (saved / "tokenizer.json").read_bytes()
    manifest = read_manifest(saved, "tokenizer", remedy="")
    assert hashlib.sha256(data).hexdigest() == gpt4.digest == manifest["digest"]
    assert (manifest["vocab_size"], manifest["end_id"], manifest["pad_id"]) == (1500, 0, 1)


def test_another_spelling_of_the_file_is_the_same_tokenizer(
    gpt4: BPETokenizer, saved: Path
) -> None:
    def respell(value: dict[str, Any]) -> dict[str, Any]:
        vocab = value["model"]["vocab"]
        value["model"]["vocab"] = dict(sorted(vocab.items(), reverse=True))
        value["model"]["merges"] = [pair.split(" ") for pair in value["model"]["merges"]]
        value["truncation"] = {
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        return dict(reversed(value.items()))

    edit(saved, respell)
    loaded = BPETokenizer.from_pretrained(saved)
    assert loaded.digest == gpt4.digest
    assert len(loaded.encode("no truncation of this text, whatever the file says")) > 4


def test_saving_replaces_an_older_tokenizer(gpt2: BPETokenizer, saved: Path) -> None:
    gpt2.save_pretrained(saved)
    assert BPETokenizer.from_pretrained(saved).digest == gpt2.digest


def test_saving_into_a_directory_of_other_things(gpt4: BPETokenizer, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(
        TokenizerError, match=r"model\.safetensors.*of its own, such as .*tokenizer"
    ):
        gpt4.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]
    with pytest.raises(TokenizerError, match="is a file"):
        gpt4.save_pretrained(tmp_path / "model.safetensors")


def test_inside_a_model_directory(gpt4: BPETokenizer, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    gpt4.save_pretrained(tmp_path / "tokenizer")
    assert BPETokenizer.from_pretrained(tmp_path).digest == gpt4.digest


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such directory"):
        BPETokenizer.from_pretrained(tmp_path / "missing")
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        BPETokenizer.from_pretrained(tmp_path)


# --------------------------------------------------------------------------- other libraries


def test_transformers_opens_it(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "saved")
    other = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (other.eos_token_id, other.bos_token_id, other.pad_token_id) == (0, 0, 1)
    assert len(other) == tokenizer.vocab_size
    for text in [*HARD, *CORPUS, *library_files(10)]:
        assert other(text)["input_ids"] == tokenizer.encode(text)
        assert other(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text, False)
        assert other.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    other.save_pretrained(tmp_path / "again")
    again = BPETokenizer.from_pretrained(tmp_path / "again")
    for text in [*HARD, *CORPUS]:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.special_tokens == tokenizer.special_tokens


def gpt2_style(directory: Path, **config: Any) -> Tokenizer:
    """As GPT-2's own file: bytes first, `<|endoftext|>` last, one ByteLevel pre-tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS + library_files(5), trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return backend


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"eos_token": "<|endoftext|>"},
        {"eos_token": {"content": "<|endoftext|>", "__type": "AddedToken"}, "pad_token": None},
    ],
)
def test_a_directory_of_another_tool(tmp_path: Path, config: dict[str, Any]) -> None:
    other = gpt2_style(tmp_path / "other", **config)
    other.encode_special_tokens = True
    tokenizer = BPETokenizer.from_pretrained(tmp_path / "other")
    assert tokenizer.vocab_size == 601
    assert tokenizer.end_id == tokenizer.pad_id == 600
    encoder = FastEncoder(tokenizer)
    assert encoder.engine == "tiktoken"
    for text in [*HARD, *CORPUS]:
        assert tokenizer.encode(text) == [*other.encode(text).ids, 600]
        assert encoder.encode(text).tolist() == other.encode(text).ids
    tokenizer.save_pretrained(tmp_path / "ours")
    assert BPETokenizer.from_pretrained(tmp_path / "ours").digest == tokenizer.digest


def test_llama_3_style(tmp_path: Path) -> None:
    """Words taken whole, several control tokens, the published pattern."""
    from llm_trainer.tokenizer.patterns import LLAMA3

    gpt2_style(tmp_path / "other", eos_token="<|end_of_text|>")

    def change(value: dict[str, Any]) -> None:
        value["model"]["ignore_merges"] = True
        split = {
            "type": "Split",
            "pattern": {"Regex": LLAMA3},
            "behavior": "Isolated",
            "invert": False,
        }
        to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        value["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [split, {**to_bytes, "trim_offsets": True}],
        }
        added = value["added_tokens"]
        added.append({**added[0], "content": "<|end_of_text|>", "id": 601})

    edit(tmp_path / "other", change)
    tokenizer = BPETokenizer.from_pretrained(tmp_path / "other")
    assert (tokenizer.end_id, tokenizer.vocab_size) == (601, 602)
    for text in [*HARD, *CORPUS]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert FastEncoder(tokenizer).encode(text).tolist() == tokenizer.encode(text, False)


def refusals() -> dict[str, tuple[Any, str]]:
    def steps(value: dict[str, Any]) -> list[Any]:
        found: list[Any] = value["pre_tokenizer"]["pretokenizers"]
        return found

    def model(**settings: Any) -> Any:
        return lambda value: value["model"].update(settings)

    def lose(value: dict[str, Any]) -> None:
        vocab = value["model"]["vocab"]
        vocab["!" * 9] = vocab.pop("A")
        value["model"]["merges"].clear()

    def rename(value: dict[str, Any]) -> None:
        vocab = value["model"]["vocab"]
        vocab["▁the"] = vocab.pop(next(reversed(vocab)))
        value["model"]["merges"].pop()

    return {
        "a list": (lambda value: [value], "must be a JSON object"),
        "unigram": (model(type="Unigram"), "'Unigram' model"),
        "no model": (lambda v: v.pop("model") and None, "model must be"),
        "normalizer": (lambda v: v.update(normalizer={"type": "NFC"}), "normalizes text"),
        "decoder": (lambda v: v.update(decoder={"type": "Metaspace"}), "decoder 'Metaspace'"),
        "dropout": (model(dropout=0.1), r"dropout is 0\.1"),
        "suffix": (model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        "fallback": (model(byte_fallback=True), "byte_fallback"),
        "no byte": (lose, "1 of 256 bytes"),
        "vocab list": (model(vocab=[["a", 0]]), "vocab must be"),
        "vocab empty": (model(vocab={}), "has 0 tokens"),
        "id text": (lambda v: v["model"]["vocab"].update(A="5"), "no whole number"),
        "id bool": (lambda v: v["model"]["vocab"].update(A=True), "no whole number"),
        "id twice": (lambda v: v["model"]["vocab"].update(A=5), "ids are not"),
        "id huge": (lambda v: v["model"]["vocab"].update(A=2**31), "ids are not"),
        "id negative": (lambda v: v["model"]["vocab"].update(A=-1), "ids are not"),
        "other alphabet": (rename, "not spelled in bytes"),
        "merges missing": (model(merges=None), "merges must be a list"),
        "merge of unknown": (lambda v: v["model"]["merges"].append("qqq zzz"), "no pair of tokens"),
        "merge of three": (lambda v: v["model"]["merges"].append("a b c"), "no pair of tokens"),
        "merge of numbers": (lambda v: v["model"]["merges"].append([1, 2]), "no pair of tokens"),
        "merge of control": (lambda v: v["model"]["merges"].append("<|pad|> a"), "no pair of"),
        "no pre-tokenizer": (lambda v: v.update(pre_tokenizer=None), "pre_tokenizer must be"),
        "no steps": (lambda v: v["pre_tokenizer"].update(pretokenizers=[]), "no steps"),
        "not bytes": (lambda v: steps(v).pop() and None, "ends with 'Split'"),
        "prefix space": (lambda v: steps(v)[1].update(add_prefix_space=True), "adds a space"),
        "loses text": (lambda v: steps(v)[0].update(behavior="Removed"), "loses text"),
        "whitespace step": (lambda v: steps(v).insert(0, {"type": "Whitespace"}), "'Whitespace'"),
        "long pattern": (
            lambda v: steps(v)[0].update(pattern={"Regex": "a|" * 5000}), "at most 4096"
        ),
        "bad pattern": (lambda v: steps(v)[0].update(pattern={"Regex": "(("}), "refuses"),
        "added token": (lambda v: v["added_tokens"].append("x"), "must be a JSON object"),
        "added twice": (lambda v: v["added_tokens"][0].update(id=7), "two ids"),
        "added strips": (
            lambda v: v["added_tokens"].append({"id": 1500, "content": "x y", "lstrip": True}),
            "strips white space",
        ),
        "surrogate": (lambda v: v["added_tokens"][0].update(content="\ud800"), "JSON|ids"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(refusals()))
def test_refused(saved: Path, name: str) -> None:
    change, message = refusals()[name]
    edit(saved, change)
    with pytest.raises(TokenizerError, match=message) as caught:
        BPETokenizer.from_pretrained(saved)
    if name != "bad pattern":
        assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "must be a JSON object"),
        ({"eos_token": "<|other|>"}, r"eos_token is '<\|other\|>'"),
        ({"eos_token": 5}, "eos_token is 5"),
        ({"pad_token": "self"}, "pad_token is 'self'"),
    ],
)
def test_a_config_that_does_not_fit(saved: Path, config: Any, message: str) -> None:
    (saved / "manifest.json").unlink()
    (saved / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match=message):
        BPETokenizer.from_pretrained(saved)


def test_no_end_token_is_named(saved: Path) -> None:
    (saved / "tokenizer_config.json").unlink()
    shutil.move(saved / "manifest.json", saved.parent)

    def rename(value: dict[str, Any]) -> None:
        vocab = value["model"]["vocab"]
        for token, name in zip(value["added_tokens"], ("<a>", "<b>"), strict=True):
            vocab[name] = vocab.pop(token["content"])
            token["content"] = name
        value["post_processor"] = None

    edit(saved, rename)
    with pytest.raises(TokenizerError, match="name it as eos_token"):
        BPETokenizer.from_pretrained(saved)


# --------------------------------------------------------------------------- damage


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    rng = random.Random(0)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        data = (saved / name).read_bytes()
        for _ in range(100):
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (saved / name).write_bytes(damaged)
            with pytest.raises(IntegrityError, match=name):
                BPETokenizer.from_pretrained(saved)
        (saved / name).write_bytes(data)
    BPETokenizer.from_pretrained(saved)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_files_that_are_no_json(saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        BPETokenizer.from_pretrained(saved)
    if name != "manifest.json":
        (saved / "manifest.json").unlink()
        with pytest.raises(LLMTrainerError, match=name):
            BPETokenizer.from_pretrained(saved)


def test_an_extra_file_in_a_directory_of_ours(saved: Path) -> None:
    (saved / "tokenizer.py").write_text("raise SystemExit")
    with pytest.raises(IntegrityError, match=r"tokenizer\.py: not listed"):
        BPETokenizer.from_pretrained(saved)


def test_a_file_of_gigabytes_is_not_read(saved: Path) -> None:
    (saved / "manifest.json").unlink()
    with open(saved / "tokenizer.json", "r+b") as file:
        file.truncate(2**33)
    with pytest.raises(IntegrityError, match="8,589,934,592 bytes"):
        BPETokenizer.from_pretrained(saved)


def test_random_damage_to_a_file_without_manifest(tmp_path: Path) -> None:
    """Either an error that names the problem, or a tokenizer that loses no text."""
    tokenizer = BPETokenizer()
    tokenizer.train(CORPUS, 300)
    tokenizer.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer.json"
    (tmp_path / "saved" / "manifest.json").unlink()
    value, rng, refused = json.loads(path.read_text()), random.Random(0), 0
    junk = [None, 0, -1, 2**40, 1.5, True, "", "x", "\u0120", [], ["a", "b"], {}, {"type": "BPE"}]
    for _ in range(150):
        damaged = json.loads(json.dumps(value))
        for _ in range(rng.randint(1, 3)):
            place: Any = damaged
            while True:
                key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
                inner = place[key]
                if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
                    break
                place = inner
            if rng.random() < 0.3 and isinstance(place, dict):
                del place[key]
            else:
                place[key] = copy.deepcopy(rng.choice(junk))
            if not damaged:
                break
        path.write_text(json.dumps(damaged))
        try:
            loaded = BPETokenizer.from_pretrained(tmp_path / "saved")
        except LLMTrainerError:
            refused += 1
            continue
        encoder = FastEncoder(loaded)
        for text in (CORPUS[0], CORPUS[4], HARD[30], HARD[-3]):
            assert loaded.decode(loaded.encode(text, False)) == text
            assert encoder.encode(text).tolist() == loaded.encode(text, False)
    assert 30 < refused < 150
