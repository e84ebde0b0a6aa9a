"""Imports: of what transformers itself saves, of our own exports, and of damaged directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_trainer.exceptions import (
    ConfigurationError,
    ExportError,
    IntegrityError,
    LLMTrainerError,
    ModelConfigurationError,
    TokenizerError,
)
from llm_trainer.export import export_model, import_model
from llm_trainer.export.importing import read_model
from llm_trainer.export.parity import check_parity
from llm_trainer.models import TransformerLM
from llm_trainer.utils.loading import load_model_and_tokenizer
from tests.export.small import VARIANTS, small_model
from tests.utils.tiny_text_model import tiny_tokenizer

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(2))
LLAMA: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
NEOX = LLAMA | {"use_parallel_residual": False, "rotary_pct": 1.0}
GPT2: dict[str, Any] = {
    "vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "activation_function": "gelu", "initializer_range": 0.3,
}  # fmt: skip
THEIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # name -> (class, its configuration, options of save_pretrained)
    "llama": ("Llama", LLAMA | {"num_key_value_heads": 2}, {}),
    "llama-in-files": ("Llama", LLAMA, {"max_shard_size": "20KB"}),
    "llama-tied-one-bias": (
        "Llama",
        LLAMA | {"attention_bias": True, "tie_word_embeddings": True},
        {},
    ),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 8, "num_key_value_heads": 2}, {}),
    "qwen3-bias": (
        "Qwen3",
        LLAMA | {"head_dim": 8, "num_key_value_heads": 4, "attention_bias": True},
        {},
    ),
    "gpt-neox": ("GPTNeoX", NEOX, {}),
    "gpt-neox-in-files": (
        "GPTNeoX",
        NEOX | {"attention_bias": False, "tie_word_embeddings": True, "rotary_emb_base": 500},
        {"max_shard_size": "20KB"},
    ),
    "gpt2": ("GPT2", GPT2, {}),
    "gpt2-untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 50}, {}),
}


def their_model(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A random model of theirs, saved by them with our tokenizer."""
    kind, values, options = THEIRS[name]
    torch.manual_seed(3)
    head = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, head)(getattr(transformers, f"{kind}Config")(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.5, 0.3)
    model.to(dtype).save_pretrained(directory, **options)
    tiny_tokenizer().save_pretrained(directory / "t")
    theirs = transformers.AutoTokenizer.from_pretrained(directory / "t", local_files_only=True)
    for file in (directory / "t").iterdir():
        file.unlink()
    (directory / "t").rmdir()
    theirs.save_pretrained(directory)
    return model


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A directory of theirs, to be damaged."""
    their_model("llama", tmp_path / "hf")
    return tmp_path / "hf"


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text("utf-8"))
    edit(values)
    path.write_text(json.dumps(values), "utf-8")


# --------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_what_transformers_saves_computes_the_same_here(name: str, tmp_path: Path) -> None:
    theirs = their_model(name, tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").exists() is not name.endswith("in-files")
    made = import_model(tmp_path / "hf", tmp_path / "m")
    ours, tokenizer = load_model_and_tokenizer(tmp_path / "m", "cpu")
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
    assert tokenizer.definition.vocab == tiny_tokenizer().definition.vocab
    assert ours.tokenizer_digest == tokenizer.digest
    assert made.parity.verified
    assert json.loads((tmp_path / "m" / "parity.json").read_text()) == made.parity.to_dict()


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_export_comes_back_bit_by_bit(variant: str, tmp_path: Path) -> None:
    model = small_model(**VARIANTS[variant][1], dropout=0.25, init="zero")
    export_model((model, tiny_tokenizer()), tmp_path / "out", verify=False)
    import_model(tmp_path / "out", tmp_path / "m", verify=False)
    model.save_pretrained(tmp_path / "before")
    weights = "model.safetensors"
    assert (tmp_path / "m" / weights).read_bytes() == (tmp_path / "before" / weights).read_bytes()
    back, tokenizer = load_model_and_tokenizer(tmp_path / "m", "cpu")
    assert back.config == model.config
    assert tokenizer.definition.vocab == tiny_tokenizer().definition.vocab
    assert tokenizer.definition.merges == tiny_tokenizer().definition.merges


@torch.no_grad()
def test_shorter_types_are_widened(tmp_path: Path) -> None:
    theirs = their_model("llama", tmp_path / "hf", torch.float16)
    import_model(tmp_path / "hf", tmp_path / "m")
    ours = TransformerLM.from_pretrained(tmp_path / "m")
    assert ours.embedding.weight.dtype == torch.float32
    assert torch.equal(ours.embedding.weight, theirs.model.embed_tokens.weight.float())


def test_files_of_old_releases(tmp_path: Path) -> None:
    """GPT-2 as it lies on the Hub: no prefix, and the causal masks among the weights."""
    theirs = their_model("gpt2", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = {
        name.removeprefix("transformer."): value for name, value in load_file(path).items()
    } | {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.bias": torch.ones(1, 1, 64, 64)}
    save_file(tensors, path, {"format": "pt"})
    _, ours = read_model(tmp_path / "hf")
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)


def test_a_tied_head_may_be_stored_too(tmp_path: Path) -> None:
    their_model("llama-tied-one-bias", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    read_model(tmp_path / "hf")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(IntegrityError, match="tie_word_embeddings is true"):
        read_model(tmp_path / "hf")


# --------------------------------------------------------------------------- refused


def test_the_proof_sees_one_changed_weight(llama: Path) -> None:
    _, model = read_model(llama)
    with torch.no_grad():
        model.get_parameter("blocks.1.feed_forward.down.weight")[0, 0] += 1
    with pytest.raises(ExportError, match="logits differ by"):
        check_parity(llama, model, None, ours=False)


def test_a_failed_proof_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    """transformers cuts words by this class's pattern, not by the one in tokenizer.json."""
    change(
        llama / "tokenizer_config.json",
        lambda values: values.update(tokenizer_class="GPT2Tokenizer"),
    )
    with pytest.raises(ExportError, match=r"the ids of .* differ"):
        import_model(llama, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_tokenizer_of_more_tokens_is_refused(llama: Path, tmp_path: Path) -> None:
    extra = {"id": 300, "content": "new", "special": True, "single_word": False}
    extra |= dict.fromkeys(("lstrip", "rstrip", "normalized"), False)
    change(llama / "tokenizer.json", lambda values: values["added_tokens"].append(extra))
    with pytest.raises(IntegrityError, match="the tokenizer has 301 tokens"):
        import_model(llama, tmp_path / "m")


@pytest.mark.parametrize(
    ("damage", "kind", "reason"),
    [
        (lambda d: (d / "config.json").unlink(), IntegrityError, "config.json: file is missing"),
        (
            lambda d: (d / "config.json").write_text(json.dumps({"x": "y" * 2**20})),
            IntegrityError,
            "has at most 1,048,576",
        ),
        (lambda d: (d / "config.json").write_text("[]"), IntegrityError, "must be a JSON object"),
        (lambda d: (d / "config.json").write_text("{"), IntegrityError, "not readable as JSON"),
        (
            lambda d: change(d / "config.json", lambda v: v.update(mlp_bias=True)),
            IntegrityError,
            "lacks model.layers.0.mlp.down_proj.bias",
        ),
        (
            lambda d: change(d / "config.json", lambda v: v.update(vocab_size=2**24)),
            IntegrityError,
            r"lm_head.weight is \(300, 32\) instead of \(16777216, 32\)",
        ),
        (
            lambda d: change(d / "config.json", lambda v: v.update(num_hidden_layers=10**7)),
            IntegrityError,
            "21 tensors cannot be 10,000,000 layers",
        ),
        (
            lambda d: change(d / "config.json", lambda v: v.update(num_hidden_layers=1)),
            IntegrityError,
            "has an extra model.layers.1",
        ),
        (
            lambda d: change(d / "config.json", lambda v: v.update(model_type="gpt2")),
            ModelConfigurationError,
            "gelu_new",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"x"), IntegrityError, "not readable as"),
        (lambda d: (d / "model.safetensors").unlink(), IntegrityError, "has no model.safetensors"),
        (
            lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
            IntegrityError,
            "pytorch_model.bin only. That is a pickle",
        ),
        (
            lambda d: (d / "tokenizer.json").unlink(),
            TokenizerError,
            "has no tokenizer.json.*--without-tokenizer",
        ),
        (
            lambda d: change(d / "tokenizer.json", lambda v: v["model"].update(type="Unigram")),
            TokenizerError,
            "only byte-level BPE .*--without-tokenizer",
        ),
    ],
)
def test_damaged_directories(
    damage: Callable[[Path], Any], kind: type[LLMTrainerError], reason: str, llama: Path
) -> None:
    damage(llama)
    with pytest.raises(kind, match=reason):
        import_model(llama, llama.parent / "m", verify=False)
    assert [path.name for path in llama.parent.iterdir()] == ["hf"]


def test_tensors_of_whole_numbers_are_refused(llama: Path, tmp_path: Path) -> None:
    path = llama / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, path)
    with pytest.raises(IntegrityError, match=r"model.norm.weight is I8; only F32, F16, BF16"):
        import_model(llama, tmp_path / "m", verify=False)


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".", 7, "x.bin"]
)
def test_an_index_cannot_lead_out_of_its_directory(place: Any, tmp_path: Path) -> None:
    their_model("llama-in-files", tmp_path / "hf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    change(index, lambda values: values["weight_map"].update({"lm_head.weight": place}))
    with pytest.raises(IntegrityError, match=r"must be a .safetensors file beside it"):
        import_model(tmp_path / "hf", tmp_path / "m", verify=False)


def test_an_index_must_fit_its_files(tmp_path: Path) -> None:
    their_model("llama-in-files", tmp_path / "hf")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    first = min((tmp_path / "hf").glob("model-*"))
    change(index, lambda values: values["weight_map"].pop("model.norm.weight"))
    with pytest.raises(IntegrityError, match=r"other tensors than .* such as model.norm.weight"):
        import_model(tmp_path / "hf", tmp_path / "m", verify=False)
    first.unlink()
    with pytest.raises(IntegrityError, match=f"{first.name}: file is missing"):
        import_model(tmp_path / "hf", tmp_path / "m", verify=False)
    index.write_text('{"weight_map": []}')
    with pytest.raises(IntegrityError, match="has no weight_map"):
        import_model(tmp_path / "hf", tmp_path / "m", verify=False)


def test_a_changed_export_is_refused(tmp_path: Path) -> None:
    export_model((small_model(), tiny_tokenizer()), tmp_path / "out", verify=False)
    weights = tmp_path / "out" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    (tmp_path / "out" / ".gitattributes").touch()
    with pytest.raises(IntegrityError, match=r"model.safetensors: differs from manifest.json"):
        import_model(tmp_path / "out", tmp_path / "m", verify=False)
    (tmp_path / "out" / "manifest.json").unlink()
    import_model(tmp_path / "out", tmp_path / "m", verify=False)


def test_places(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hf download"):
        import_model(tmp_path / "absent", tmp_path / "m")
    with pytest.raises(LLMTrainerError, match="holds other files"):
        import_model(llama, llama)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is a file"):
        import_model(llama, tmp_path / "file")
    made = import_model(llama, tmp_path / "m", with_tokenizer=False)
    assert made.parity.verified
    assert not (tmp_path / "m" / "tokenizer").exists()
    assert TransformerLM.from_pretrained(tmp_path / "m").tokenizer_digest is None
    import_model(llama, tmp_path / "m", verify=False)  # what is there is replaced
    assert (tmp_path / "m" / "tokenizer").is_dir()


def test_what_transformers_cannot_load_is_no_proof(llama: Path, tmp_path: Path) -> None:
    change(llama / "config.json", lambda values: values.update(pad_token_id="x"))
    with pytest.raises(ExportError, match="transformers cannot load the model"):
        import_model(llama, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
