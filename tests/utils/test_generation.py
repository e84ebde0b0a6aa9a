"""TextGenerator: text in, text out; pairs, streams, stop texts, batches; the session."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import llm_trainer.models.sampling as samplers
from llm_trainer.exceptions import (
    GenerationError,
    IntegrityError,
    TokenizerError,
    TokenizerNotTrainedException,
)
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.utils import generation
from llm_trainer.utils.generation import GenerationConfig, TextGenerator
from llm_trainer.utils.loading import load_model_and_tokenizer
from tests.utils.tiny_text_model import TEXTS, tiny_text_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PROMPTS = ["def add", "", "你好 and", "for name in names:\n    print"]


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return TextGenerator(tiny_text_model(), tiny_tokenizer())


def greedy(**changes: object) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 30, "temperature": 0.0} | changes)


# --------------------------------------------------------------------------- text in, text out


def test_text_is_the_decoded_continuation_of_the_encoded_prompt(generator: TextGenerator) -> None:
    tokenizer = generator.tokenizer
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt, add_special_tokens=False) or [tokenizer.end_id]
        out = generator.model.generate(
            torch.tensor([ids]), max_new_tokens=30, do_sample=False, end_id=tokenizer.end_id
        )
        new = out[0, len(ids) :].tolist()
        assert generator.generate(prompt, greedy()) == prompt + tokenizer.decode(new)
        (made,) = generator.complete([prompt], greedy())
        assert made.token_ids == new
        assert made.text == tokenizer.decode(new)


def test_a_batch_equals_one_by_one(generator: TextGenerator) -> None:
    for config in (greedy(), greedy(num_beams=3), greedy(repetition_penalty=1.2)):
        batch = generator.batch_generate(PROMPTS, config)
        assert batch == [generator.generate(prompt, config) for prompt in PROMPTS]


def test_the_end_token_ends_a_text_and_is_not_part_of_it(generator: TextGenerator) -> None:
    config = GenerationConfig(max_new_tokens=60, seed=0)
    texts = [f"prompt {i}" for i in range(60)]
    made = generator.complete(texts, config)
    ended = [one for one in made if one.reason == "end"]
    assert ended
    for one in ended:
        assert one.token_ids[-1] == generator.tokenizer.end_id
        assert generator.tokenizer.end_id not in one.token_ids[:-1]
        assert "endoftext" not in one.text
    assert all(len(one.token_ids) == 60 for one in made if one.reason == "length")


def test_defaults_and_seeds(generator: TextGenerator) -> None:
    ids = generator.tokenizer.encode("def", add_special_tokens=False)
    (made,) = generator.complete(["def"], GenerationConfig(seed=1))
    assert len(ids) + len(made.token_ids) <= 100
    assert generator.generate("def", GenerationConfig(seed=1)) == "def" + made.text
    assert generator.generate("def", GenerationConfig(seed=2)) != "def" + made.text
    assert generator.generate("def").startswith("def")


def test_the_spelling_of_a_control_token_is_text(generator: TextGenerator) -> None:
    assert generator.generate("<|endoftext|>", greedy()).startswith("<|endoftext|>")


# --------------------------------------------------------------------------- streaming, stops


@pytest.mark.parametrize("config", [
    greedy(), greedy(num_beams=2), GenerationConfig(seed=3, max_new_tokens=40),
    GenerationConfig(seed=3, max_new_tokens=40, stop=["a", "\n"]),
])  # fmt: skip
def test_streamed_text_is_the_final_text(
    generator: TextGenerator, config: GenerationConfig
) -> None:
    shown = [""] * len(PROMPTS)
    pieces = 0

    def on_text(row: int, text: str) -> None:
        nonlocal pieces
        assert text
        pieces += 1
        shown[row] += text

    texts = generator.batch_generate(PROMPTS, config, on_text=on_text)
    assert [prompt + text for prompt, text in zip(PROMPTS, shown, strict=True)] == texts
    assert texts == generator.batch_generate(PROMPTS, config)
    assert pieces > len(PROMPTS)


@pytest.mark.parametrize("seed", range(5))
def test_streams_never_show_half_a_character(generator: TextGenerator, seed: int) -> None:
    """A random model over bytes makes all kinds of broken characters."""
    pieces: list[str] = []
    config = GenerationConfig(seed=seed, max_new_tokens=80)
    (made,) = generator.complete(["🙂"], config, on_text=lambda _, text: pieces.append(text))
    assert made.text == generator.tokenizer.decode(made.token_ids)
    shown = ""
    for piece in pieces:
        shown += piece
        assert made.text.startswith(shown)


@pytest.mark.parametrize("beams", [1, 2])
def test_stop_texts(generator: TextGenerator, beams: int) -> None:
    config = greedy(num_beams=beams, max_new_tokens=40)
    (free,) = generator.complete(["def add"], config)
    stop = free.text[6:9]
    (made,) = generator.complete(["def add"], config.replace(stop=["no such text", stop]))
    assert made.reason == "stop"
    assert made.text == free.text[: free.text.index(stop)]
    if beams == 1:
        assert made.token_ids == free.token_ids[: len(made.token_ids)]
        assert len(made.token_ids) < len(free.token_ids), "generation really ended"
    (other,) = generator.complete(["def add"], config.replace(stop=["no such text"]))
    assert (other.text, other.reason) == (free.text, free.reason)


def test_stop_texts_are_looked_for_in_new_text_only(generator: TextGenerator) -> None:
    (free,) = generator.complete(["def add"], greedy())
    assert "def add" not in free.text
    (made,) = generator.complete(["def add"], greedy(stop=["def", "d" + free.text[:1]]))
    assert made.text == free.text[: free.text.index("def")] if "def" in free.text else free.text


def test_rows_stop_each_on_their_own(generator: TextGenerator) -> None:
    free = generator.complete(PROMPTS, greedy(max_new_tokens=40))
    stop = [free[0].text[10:12], free[2].text[20:22]]
    made = generator.complete(PROMPTS, greedy(max_new_tokens=40, stop=stop))
    for one, whole in zip(made, free, strict=True):
        cuts = [whole.text.index(text) for text in stop if text in whole.text]
        assert one.text == (whole.text[: min(cuts)] if cuts else whole.text)


# --------------------------------------------------------------------------- limits


def test_a_long_prompt_is_kept_in_the_text(
    generator: TextGenerator, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "the quick brown fox " * 60
    with caplog.at_level(logging.WARNING):
        text = generator.generate(prompt, greedy(max_new_tokens=5))
    assert text.startswith(prompt)
    assert len(caplog.records) == 1
    assert "only the last 123 are used" in caplog.text


@pytest.mark.parametrize(("prompts", "words"), [
    ([], ["empty"]), ("text", ["list of texts"]), ([1, "a"], ["number 0 is 1"]),
    ([b"x"], ["b'x'"]), ([None], ["None"]),
])  # fmt: skip
def test_impossible_prompts_are_named(
    generator: TextGenerator, prompts: list[str], words: list[str]
) -> None:
    with pytest.raises(GenerationError) as caught:
        generator.batch_generate(prompts)
    assert all(word in str(caught.value) for word in ["prompts", *words])


def test_other_errors(generator: TextGenerator) -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        generator.generate("a\ud800b")
    with pytest.raises(GenerationError, match="top_k"):
        generator.generate("a", GenerationConfig(top_k=0))


# --------------------------------------------------------------------------- pairs


def test_another_tokenizer_is_refused_by_digest() -> None:
    model = tiny_text_model()
    other = BPETokenizer()
    other.train([*TEXTS, "something else entirely, and more of it"] * 2, 300)
    assert other.digest != model.tokenizer_digest
    with pytest.raises(IntegrityError) as caught:
        TextGenerator(model, other)
    assert other.digest in str(caught.value)
    assert str(model.tokenizer_digest) in str(caught.value)
    model.tokenizer_digest = None
    TextGenerator(model, other)


def test_vocabularies_must_fit(caplog: pytest.LogCaptureFixture) -> None:
    small = tiny_text_model(vocab_size=280)
    small.tokenizer_digest = None
    with pytest.raises(IntegrityError, match="300 tokens, but the model knows 280"):
        TextGenerator(small, tiny_tokenizer())
    large = tiny_text_model(vocab_size=420)
    large.tokenizer_digest = None
    with caplog.at_level(logging.WARNING):
        generator = TextGenerator(large, tiny_tokenizer())
        TextGenerator(large, tiny_tokenizer())
    assert len(caplog.records) == 1
    for config in (
        greedy(),
        GenerationConfig(seed=0),
        greedy(num_beams=3),
        greedy(use_cache=False),
    ):
        made = generator.complete(PROMPTS, config.replace(max_new_tokens=100))
        assert max(max(one.token_ids) for one in made) < 300


def test_an_untrained_tokenizer_is_refused() -> None:
    with pytest.raises(TokenizerNotTrainedException):
        TextGenerator(tiny_text_model(), BPETokenizer())


def save_pair(directory: Path, *, inside: bool = True) -> Path:
    from llm_trainer.models.storage import save_model

    tokenizer = tiny_tokenizer()

    def add(target: Path) -> None:
        tokenizer.save_pretrained(target / "tokenizer")
        if not inside:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (target / "tokenizer" / name).rename(target / name)
            (target / "tokenizer" / "manifest.json").unlink()
            (target / "tokenizer").rmdir()

    save_model(tiny_text_model(), directory, add)
    return directory


@pytest.mark.parametrize("inside", [True, False], ids=["tokenizer-directory", "beside"])
def test_loading_a_pair(generator: TextGenerator, tmp_path: Path, inside: bool) -> None:
    path = save_pair(tmp_path / "model", inside=inside)
    model, tokenizer = load_model_and_tokenizer(path, "cpu")
    assert not model.training
    loaded = TextGenerator(model, tokenizer)
    assert loaded.generate("def", greedy()) == generator.generate("def", greedy())


def test_loading_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = save_pair(tmp_path / "model")
    other = BPETokenizer()
    other.train(["other text altogether " * 9], 280)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(IntegrityError, match=other.digest):
        load_model_and_tokenizer(path, "cpu", tokenizer_path=tmp_path / "other")
    with pytest.raises(IntegrityError, match="no such model directory"):
        load_model_and_tokenizer(tmp_path / "nowhere", "cpu")
    tiny_text_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_model_and_tokenizer(tmp_path / "bare", "cpu")


def test_samplers_are_the_models_own() -> None:
    for name in ("sample_top_k", "sample_top_p", "apply_repetition_penalty", "create_causal_mask"):
        assert getattr(generation, name) is getattr(samplers, name)


# --------------------------------------------------------------------------- interactive


def session(generator: TextGenerator, *lines: str, **settings: object) -> str:
    output = io.StringIO()
    left = iter(lines)

    def read(sign: str) -> str:
        output.write(sign)
        try:
            line = next(left)
        except StopIteration:
            raise EOFError from None
        output.write(line + "\n")
        return line

    generator.interactive_generate(greedy(**settings), read=read, output=output)
    return output.getvalue()


def test_a_session_continues_prompts_and_goes_on_until_the_end(generator: TextGenerator) -> None:
    text = session(generator, "def add", "", "/new")
    assert f"> def add\n{generator.generate('def add', greedy())}\n[length, 30 tokens]" in text
    assert f"> /new\n{generator.generate('', greedy())}\n[" in text


def test_session_commands(generator: TextGenerator) -> None:
    text = session(
        generator, "/help", "/set max_new_tokens 3", "/set top_p none", '/set stop ["a", "b"]',
        "/set temperature hot", "/set temprature 1", "/set top_k", "/nonsense", "/show", "/reset",
        "/quit", "never read",
    )  # fmt: skip
    assert "/set NAME VALUE" in text
    assert "max_new_tokens = 3\n" in text
    assert "top_p = none\n" in text
    assert 'stop = ["a", "b"]\n' in text
    assert "error: temperature: expected a number, found 'hot'" in text
    assert "did you mean 'temperature'" in text
    assert "/set needs a name and a value" in text
    assert "/nonsense is no command" in text
    shown, reset = text.split("> /reset")
    assert "  max_new_tokens = 3\n" in shown.split("> /show")[1]
    assert "  max_new_tokens = 30\n" in reset
    assert "never read" not in text


def test_a_prompt_of_several_lines_and_an_error(generator: TextGenerator) -> None:
    text = session(generator, "for x in y:\\", "  pass", "/set max_new_tokens none", "x " * 99)
    assert generator.generate("for x in y:\n  pass", greedy()) in text
    assert "error: max_length (100) counts the prompt" in text


SESSION = """
import sys, torch
torch.set_num_threads(1)
from llm_trainer.utils.generation import GenerationConfig, TextGenerator
from tests.utils.tiny_text_model import tiny_text_model, tiny_tokenizer
generator = TextGenerator(tiny_text_model(max_seq_len=4096), tiny_tokenizer())
generator.interactive_generate(GenerationConfig(max_new_tokens=int(sys.argv[1]), seed=0))
print("left")
"""


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            arguments, cwd=ROOT, env=os.environ | environment,
            preexec_fn=lambda: os.login_tty(slave),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self, pattern: str, presses: int = 10) -> None:
        """Press Ctrl-C until `pattern` comes: Python misses a signal between two keys it reads."""
        for _ in range(presses - 1):
            self.type("\x03")
            with suppress(AssertionError):
                self.expect(pattern, 5.0)
                return
        self.type("\x03")
        self.expect(pattern)

    def expect(self, pattern: str, seconds: float = 60.0) -> str:
        """Wait for `pattern` in what came since the last call; return all up to its end."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen[-2000:]!r}"
            try:
                self.seen += os.read(self._master, 65536).decode("utf-8", "replace")
            except OSError:
                assert re.search(pattern, self.seen), f"no {pattern!r} in {self.seen[-2000:]!r}"
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    environment = {"XDG_STATE_HOME": str(tmp_path), "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    opened = Terminal([sys.executable, "-c", SESSION, "4000"], environment)
    yield opened
    opened.close()


def test_a_terminal_with_ctrl_c_ctrl_d_and_history(terminal: Terminal, tmp_path: Path) -> None:
    terminal.expect("> ")
    terminal.type("def add\n")
    terminal.expect("def add\r\n.*def add.{20}")  # the echo, then text as it comes
    terminal.type("\x03")
    terminal.expect(r"\[stopped\]\r\n> ")
    terminal.type("half a line")
    terminal.expect("half a line")
    terminal.interrupt(r"Ctrl-D leaves\)\r\n> ")
    terminal.type("/set max_new_tokens 5\n")
    terminal.expect(r"max_new_tokens = 5\r\n> ")
    terminal.type("x\n")
    told = terminal.expect(r"\[(length|end), \d tokens\]\r\n> ")
    assert "\x1b" not in told.replace("\x1b[?2004", "")
    terminal.type("\x04")
    terminal.expect("left")
    assert terminal.process.wait(20) == 0
    history = (tmp_path / "llm_trainer" / "history").read_text()
    assert history.splitlines() == ["def add", "/set max_new_tokens 5", "x"]
