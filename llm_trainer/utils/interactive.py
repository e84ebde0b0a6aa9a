"""A conversation with a model on the terminal: prompts in, continuations as they are generated.

Lines that begin with a slash are commands; a backslash at the end of a line continues the prompt
on the next. The history of prompts is kept between sessions where `readline` is there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from llm_trainer.config.generation import GenerationConfig
from llm_trainer.exceptions import LLMTrainerError

logger = logging.getLogger(__name__)

HISTORY_LINES = 1000
HELP = """\
Type a prompt and press Enter; the model continues it.
  \\ at the end of a line   the prompt goes on in the next line
  /set NAME VALUE         change a setting; none switches it off; stop takes a JSON list
  /show                   all settings
  /reset                  the settings as they were at the start
  /new                    let the model begin a document of its own
  /help                   this list
  /quit                   leave (Ctrl-D too)
Ctrl-C stops a generation."""

_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters as their pictures: what a model writes must not steer the terminal."""


class Finished(Protocol):
    """What a generation tells at its end."""

    @property
    def reason(self) -> str:
        """end, stop or length."""
        ...

    @property
    def token_ids(self) -> list[int]:
        """The new tokens."""
        ...


Generate = Callable[[str, GenerationConfig, Callable[[str], None]], Finished]
"""Continues a prompt with these settings and shows the pieces of text."""


def run_session(
    generate: Generate,
    config: GenerationConfig,
    *,
    read: Callable[[str], str] | None,
    output: TextIO,
) -> None:
    """Run until the end of the input or /quit; errors are shown and the session goes on."""
    session = _Session(generate, config, output)
    with _history() if read is None else _no_history():
        read = read or input
        session.write("/help lists the commands.\n")
        while session.running:
            try:
                line = _read_prompt(read)
            except EOFError:
                session.write("\n")
                return
            except KeyboardInterrupt:
                session.write("\n(Ctrl-D leaves)\n")
                continue
            session.handle(line)


class _Session:
    def __init__(self, generate: Generate, config: GenerationConfig, output: TextIO) -> None:
        self.running = True
        self._generate = generate
        self._initial = config
        self._config = config
        self._output = output

    def write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()

    def handle(self, line: str) -> None:
        """Carry out one line: a command, or a prompt to continue."""
        if not line:
            return
        if not line.startswith("/"):
            self._continue(line)
            return
        name, _, rest = line.partition(" ")
        match name:
            case "/quit" | "/exit" | "/q":
                self.running = False
            case "/help" | "/?":
                self.write(HELP + "\n")
            case "/show":
                self._show_settings()
            case "/reset":
                self._config = self._initial
                self._show_settings()
            case "/new":
                self._continue("")
            case "/set":
                self._set(rest)
            case _:
                self.write(f"{name} is no command; /help lists them\n")

    def _continue(self, prompt: str) -> None:
        self._show_text(prompt)
        try:
            done = self._generate(prompt, self._config, self._show_text)
        except KeyboardInterrupt:
            self.write("\n[stopped]\n")
        except LLMTrainerError as error:
            self.write(f"\nerror: {error}\n")
        else:
            self.write(f"\n[{done.reason}, {len(done.token_ids)} tokens]\n")

    def _show_text(self, text: str) -> None:
        self.write(text.translate(_VISIBLE) if self._output.isatty() else text)

    def _set(self, rest: str) -> None:
        name, _, value = rest.strip().partition(" ")
        if not name or not value.strip():
            self.write("/set needs a name and a value, such as /set temperature 0.7\n")
            return
        try:
            self._config = self._config.replace(**{name: _parse(value.strip())})
        except LLMTrainerError as error:
            self.write(f"error: {error}\n")
            return
        self.write(f"{name} = {_spell(getattr(self._config, name))}\n")

    def _show_settings(self) -> None:
        for name, value in self._config.to_dict().items():
            self.write(f"  {name} = {_spell(value)}\n")


def _read_prompt(read: Callable[[str], str]) -> str:
    """A prompt of one or more lines."""
    lines = [read("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(read(". "))
    return "\n".join(lines)


def _parse(value: str) -> Any:
    if value.lower() == "none":
        return None
    try:
        return json.loads(value)
    except ValueError:
        return value


def _spell(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


# --------------------------------------------------------------------------- history


def history_path() -> Path:
    """Where the history of prompts is kept: the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(
        os.path.expanduser("~"), ".local", "state"
    )
    return Path(state) / "llm_trainer" / "history"


@contextmanager
def _history() -> Iterator[None]:
    """Line editing and history for `input`, where the platform has them."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = history_path()
    try:
        readline.read_history_file(path)
    except OSError as error:
        logger.debug("no history yet: %s", error)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
            path.chmod(0o600)
        except OSError as error:
            logger.warning("%s: the history cannot be kept (%s)", path, error)


@contextmanager
def _no_history() -> Iterator[None]:
    yield
