"""Exports, opened by transformers: logits, greedy text, token ids; and what failures leave."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_trainer.exceptions import (
    ConfigurationError,
    ExportError,
    IntegrityError,
    LLMTrainerError,
    MissingDependencyError,
    ModelConfigurationError,
)
from llm_trainer.export import export_model, export_tensors
from llm_trainer.export.card import LINEAGE_NAME
from llm_trainer.export.comparing import TEXTS
from llm_trainer.export.parity import check_parity
from llm_trainer.export.weights import parse_size
from llm_trainer.models import TransformerLM
from llm_trainer.models.storage import model_tensors, save_model
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import lineage
from llm_trainer.utils.generation import GenerationConfig, TextGenerator
from tests.export.small import GPT, VARIANTS, contents, save, small_model
from tests.utils.tiny_text_model import tiny_tokenizer

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 300, (3, 60), generator=torch.Generator().manual_seed(2))


def open_model(directory: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, **options
    ).eval()


def open_tokenizer(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)


@pytest.fixture
def model() -> TransformerLM:
    return small_model(qk_norm=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export, to be read only."""
    out = tmp_path_factory.mktemp("export") / "out"
    export_model((small_model(qk_norm=True), tiny_tokenizer()), out, verify=False)
    return out


# --------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_transformers_computes_the_same(variant: str, tmp_path: Path) -> None:
    architecture, changes = VARIANTS[variant]
    ours, tokenizer = small_model(**changes), tiny_tokenizer()
    made = export_model((ours, tokenizer), tmp_path / "out", verify=False)
    assert made.architecture == architecture
    theirs = open_model(tmp_path / "out")
    assert type(theirs).__name__ == architecture
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, atol=1e-4, rtol=0)
    prompt = open_tokenizer(tmp_path / "out")("def add", return_tensors="pt")
    text = open_tokenizer(tmp_path / "out").decode(
        theirs.generate(**prompt, max_new_tokens=20, do_sample=False)[0], skip_special_tokens=True
    )
    settings = GenerationConfig(max_new_tokens=20, do_sample=False)
    assert text == TextGenerator(ours, tokenizer).generate("def add", settings)


def test_the_proof_is_written_beside_it(model: TransformerLM, tmp_path: Path) -> None:
    made = export_model((model, tiny_tokenizer()), tmp_path / "out")
    parity = json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))
    assert parity == made.parity.to_dict()
    assert parity["verified"] is True
    assert parity["logits"]["max_abs_difference"] < 1e-4
    assert parity["logits"]["argmax_agreement"] == 1.0
    assert parity["logits"]["largest"] > 1, "logits that differ clearly"
    assert [entry["equal"] for entry in parity["greedy"]] == [True] * 4
    assert all(entry["text"] for entry in parity["greedy"])
    assert parity["tokenizer_texts"] == len(TEXTS) + 2
    assert parity["packages"]["transformers"] == transformers.__version__


def test_token_ids_are_ours_and_nothing_is_added(exported: Path) -> None:
    ours, theirs = tiny_tokenizer(), open_tokenizer(exported)
    for text in (*TEXTS, "a <|endoftext|> b<|pad|>"):
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text, add_special_tokens=False)
        assert theirs.decode(ids) == text
    assert theirs.model_max_length == 128
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.end_id, ours.pad_id)


def test_settings_are_those_of_the_tokenizer(exported: Path) -> None:
    theirs, ours = open_model(exported), tiny_tokenizer()
    for settings in (theirs.config, theirs.generation_config):
        found = (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id)
        assert found == (ours.end_id, ours.end_id, ours.pad_id)
    values = json.loads((exported / "config.json").read_text("utf-8"))
    assert values["architectures"] == ["Qwen3ForCausalLM"]
    assert values["dtype"] == values["torch_dtype"] == "float32"
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 10000.0


@torch.no_grad()
def test_bfloat16_is_the_rounded_model(model: TransformerLM, tmp_path: Path) -> None:
    made = export_model((model, tiny_tokenizer()), tmp_path / "out", dtype="bfloat16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert open_model(tmp_path / "out").dtype == torch.bfloat16
    assert made.parity.logits["max_abs_difference"] < 1e-4
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    theirs = open_model(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, atol=1e-4, rtol=0)
    assert 1e-3 < made.parity.rounding < 1
    assert "rounding the weights moved" in made.parity.summary()


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_weights_in_several_files_are_the_same(tied: bool, tmp_path: Path) -> None:
    model = small_model(tie_embeddings=tied)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    export_model((model, tiny_tokenizer()), whole, verify=False)
    made = export_model((model, tiny_tokenizer()), cut, max_shard_size="20KB")
    names = made.weight_files
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((cut / "model.safetensors.index.json").read_text("utf-8"))
    pieces = {name: load_file(cut / name) for name in names}
    merged = {name: tensor for piece in pieces.values() for name, tensor in piece.items()}
    assert index["weight_map"] == {name: file for file, piece in pieces.items() for name in piece}
    single = load_file(whole / "model.safetensors")
    assert merged.keys() == single.keys()
    assert all(torch.equal(merged[name], single[name]) for name in single)
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in single.values())
    assert ("lm_head.weight" in single) is not tied
    sizes = [sum(4 * t.numel() for t in piece.values()) for piece in pieces.values()]
    assert all(size <= 20_000 or len(piece) == 1 for size, piece in zip(sizes, pieces.values(), strict=True))  # fmt: skip  # noqa: E501


def test_ids_that_the_tokenizer_lacks_are_never_generated(tmp_path: Path) -> None:
    model = small_model(vocab_size=330)
    with torch.no_grad():
        model.head.weight[300:] *= 10  # they would win otherwise
    made = export_model((model, tiny_tokenizer()), tmp_path / "out")
    assert all(entry["equal"] for entry in made.parity.greedy)
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text("utf-8"))
    assert settings["suppress_tokens"] == list(range(300, 330))


def test_a_model_alone(model: TransformerLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    made = export_model(tmp_path / "m", tmp_path / "out", with_tokenizer=False)
    assert made.parity.verified
    assert made.parity.tokenizer_texts == 0
    assert len(made.parity.greedy[0]["token_ids"]) == 24
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert open_model(tmp_path / "out").generation_config.eos_token_id is None


def test_what_other_tokenizers_put_around_texts_is_left_out(
    model: TransformerLM, tmp_path: Path
) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "manifest.json").unlink()
    path = tmp_path / "t" / "tokenizer.json"
    end = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    values = json.loads(path.read_text("utf-8")) | {
        "post_processor": {
            "type": "TemplateProcessing", "special_tokens": end, "pair": [],
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
        }
    }  # fmt: skip
    path.write_text(json.dumps(values), "utf-8")
    tokenizer = BPETokenizer.from_pretrained(tmp_path / "t")
    assert open_tokenizer(tmp_path / "t")("x")["input_ids"][0] == 0
    model.tokenizer_digest = None
    made = export_model((model, tokenizer), tmp_path / "out")
    assert made.parity.tokenizer_texts == len(TEXTS) + 2
    assert open_tokenizer(tmp_path / "out")("x")["input_ids"] == tokenizer.encode("x", False)


# --------------------------------------------------------------------------- the directory


def test_same_model_same_bytes(model: TransformerLM, tmp_path: Path) -> None:
    source = save(model, tmp_path / "m")
    export_model(source, tmp_path / "a")
    export_model((TransformerLM.from_pretrained(source), tiny_tokenizer()), tmp_path / "b")
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first.keys() == {
        "README.md", "config.json", "generation_config.json", "manifest.json", "model.safetensors",
        "parity.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    # a directory without lineage.json names its tokenizer's digest no more than it must
    differing = {name for name in first if first[name] != second[name]}
    assert differing <= {"README.md", "manifest.json"}
    export_model(source, tmp_path / "c")
    assert contents(tmp_path / "c") == first
    everything = b"".join(first.values())
    assert str(tmp_path).encode() not in everything


def test_the_card_says_where_the_model_comes_from(model: TransformerLM, tmp_path: Path) -> None:
    def add(directory: Path) -> None:
        tiny_tokenizer().save_pretrained(directory / "tokenizer")
        lineage.write_lineage(
            directory, fingerprint="f" * 64, tokenizer_digest=tiny_tokenizer().digest,
            data={"packed_digest": "p" * 64, "raw_digest": "r" * 64, "origin": {"x": 1}},
            params={}, code={}, packages={},
        )  # fmt: skip

    assert LINEAGE_NAME == lineage.LINEAGE_NAME
    save_model(model, tmp_path / "m", add)
    export_model(tmp_path / "m", tmp_path / "out", verify=False)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    for digest in ("f" * 64, "p" * 64, "r" * 64, tiny_tokenizer().digest):
        assert f"`{digest}`" in card
    assert f"| Parameters | {model.get_num_params():,} |" in card
    assert "Qwen3ForCausalLM" in card


def test_an_earlier_export_is_replaced_and_other_things_are_not(
    model: TransformerLM, tmp_path: Path
) -> None:
    out, pair = tmp_path / "out", (model, tiny_tokenizer())
    export_model(pair, out, max_shard_size="20KB", verify=False)
    export_model(pair, out, verify=False)
    assert not list(out.glob("model-*"))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(LLMTrainerError, match=r"other files \(notes.txt\)"):
        export_model(pair, out, verify=False)
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "folder" / "tokenizer").mkdir(parents=True)
    with pytest.raises(LLMTrainerError, match=r"other files \(tokenizer\)"):
        export_model(pair, tmp_path / "folder", verify=False)
    save(model, tmp_path / "m")
    with pytest.raises(IntegrityError, match="not a manifest of kind 'huggingface'"):
        export_model(pair, tmp_path / "m", verify=False)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is a file"):
        export_model(pair, tmp_path / "file", verify=False)


@pytest.mark.parametrize("size", ["", "0", "5 apples", "-1", "GB"])
def test_impossible_options(size: str, model: TransformerLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_shard_size"):
        export_model((model, tiny_tokenizer()), tmp_path / "out", max_shard_size=size)
    with pytest.raises(ConfigurationError, match="dtype: 'float8'"):
        export_model((model, tiny_tokenizer()), tmp_path / "out", dtype="float8")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_sizes() -> None:
    sizes = {"5GB": 5 * 10**9, "1.5 KB": 1500, "2GiB": 2**31, 17: 17, "20b": 20, "3mib": 3 * 2**20}
    assert {text: parse_size(text) for text in sizes} == sizes


def test_a_model_without_counterpart_leaves_nothing(tmp_path: Path) -> None:
    pair = (small_model(activation="relu2"), tiny_tokenizer())
    with pytest.raises(ModelConfigurationError, match=r"activation \(relu2\)"):
        export_model(pair, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_without_transformers_only_if_asked(
    model: TransformerLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    pair = (model, tiny_tokenizer())
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-trainer\[hf\]'") as caught:
        export_model(pair, tmp_path / "out")
    assert "--no-verify" in str(caught.value)
    assert not list(tmp_path.iterdir())
    made = export_model(pair, tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == {"verified": False}
    assert made.parity.summary() == "not verified"


# --------------------------------------------------------------------------- the proof can fail


class Unsteady(Mapping[str, Tensor]):
    """Tensors from somewhere that changes under way: one weight is another when asked again."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str) -> None:
        self.tensors, self.name, self.asked = tensors, name, 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if name == self.name:
            self.asked += 1
            if self.asked > 1:
                tensor = tensor.clone()
                tensor.view(-1)[3] += 0.5
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_a_failed_proof_leaves_nothing(model: TransformerLM, tmp_path: Path) -> None:
    tensors = Unsteady(model_tensors(model), "blocks.1.attention.qkv.weight")
    with pytest.raises(ExportError, match=r"logits differ by .* is allowed"):
        export_tensors(model.config, tensors, tmp_path / "out", tokenizer=tiny_tokenizer())
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_outlives_a_failed_one(model: TransformerLM, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model((model, tiny_tokenizer()), out, verify=False)
    before = contents(out)
    with pytest.raises(ExportError):
        export_tensors(model.config, Unsteady(model_tensors(model), "head.weight"), out)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_norm.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_one_changed_weight_is_seen(name: str, exported: Path, tmp_path: Path) -> None:
    tensors = load_file(exported / "model.safetensors")
    tensors[name].view(-1)[3] += 0.5
    copy = copied(exported, tmp_path)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match="logits differ by"):
        check_parity(copy, small_model(qk_norm=True), tiny_tokenizer(), ours=True)


def test_other_faults_are_seen(exported: Path, tmp_path: Path) -> None:
    model, tokenizer = small_model(qk_norm=True), tiny_tokenizer()

    def check(file: str, match: str, **changes: Any) -> None:
        copy = copied(exported, tmp_path)
        values = json.loads((copy / file).read_text("utf-8"))
        (copy / file).write_text(json.dumps(values | changes), "utf-8")
        with pytest.raises(ExportError, match=match):
            check_parity(copy, model, tokenizer, ours=True)

    check("config.json", "logits differ", rms_norm_eps=0.1)
    check("config.json", "other tensors", num_hidden_layers=1, layer_types=None)
    check("config.json", "cannot load the model", hidden_size="x")
    check("generation_config.json", "generation_config.eos_token_id is 5", eos_token_id=5)
    check("tokenizer_config.json", "the ids of 'a <|endoftext|> b' differ".replace("|", r"\|"),
          split_special_tokens=False)  # fmt: skip
    definition = json.loads((exported / "tokenizer.json").read_text("utf-8"))
    definition["model"]["merges"] = definition["model"]["merges"][::-1]
    check("tokenizer.json", "the ids of .* differ", **definition)


def test_not_a_number_is_no_equality(tmp_path: Path) -> None:
    model = small_model(**GPT)
    with torch.no_grad():
        model.final_norm.bias[0] = float("nan")
    with pytest.raises(ExportError, match="logits are not finite"):
        export_model((model, None), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def copied(directory: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir(exist_ok=True)
    for name, data in contents(directory).items():
        (copy / name).write_bytes(data)
    return copy
