"""The session: commands, several lines, errors, and a real terminal with its signals."""

from __future__ import annotations

import io
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

from llm_trainer.utils.generation import TextGenerator
from tests.utils.tiny_text_model import greedy

ROOT = Path(__file__).parents[2]


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
from tests.utils.tiny_text_model import greedy, tiny_text_model, tiny_tokenizer
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
