"""Change values inside YAML text and leave every other byte as it is.

Works on files of our own shape: sections that hold keys, values on the line of their key. A value
is replaced in place by the text given for it; a comment behind it keeps its column. What is not
touched (comments, order, blank lines, a user's own formatting) survives exactly, which a parse and
dump would not promise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_trainer.config.loader import parse_config_text
from llm_trainer.exceptions import ConfigurationError

Sections = Mapping[str, Mapping[str, "Value"]]


@dataclass(frozen=True)
class Value:
    """One value of a file: what it means, how it is written, and where."""

    value: Any
    text: str
    """Its spelling on one line."""
    start: int
    """Offset of its first character in the file's text; behind the colon if it begins on another
    line."""
    end: int
    """Offset behind its last character; equal to start where nothing is written (`key:`)."""


def read_values(text: str, path: Path) -> dict[str, dict[str, Value]]:
    """All values of all sections; `path` gives the errors their name.

    Raises:
        ConfigurationError: not YAML, a key twice, or a section that does not hold keys.
    """
    parsed = parse_config_text(text, path)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    found: dict[str, dict[str, Value]] = {}
    for name_node, section in root.value:
        name = name_node.value
        if not isinstance(section, yaml.MappingNode) or section.flow_style:
            raise ConfigurationError(
                f"{path}:{section.start_mark.line + 1}: section '{name}' must hold keys, one a line"
            )
        found[name] = {
            key.value: _value(key, node, parsed[name][key.value], text)
            for key, node in section.value
        }
    return found


def _value(key: yaml.Node, node: yaml.Node, value: Any, text: str) -> Value:
    start, end = node.start_mark.index, _end(node)
    end = start + len(text[start:end].rstrip("\n"))  # a block of text takes its line end along
    spelling = text[start:end]
    block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    if block or "\n" in spelling or not spelling:
        spelling = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
        spelling = spelling.removesuffix("\n").removesuffix("\n...")
    if node.start_mark.line > key.start_mark.line:
        # a list with an item a line begins behind its key, not where its first item does
        start = text.index(":", key.end_mark.index) + 1
    return Value(value, spelling, start, end)


def _end(node: yaml.Node) -> int:
    # a block collection's own end mark lies behind the comments that follow it
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _end(node.value[-1][1])
    return int(node.end_mark.index)


def set_values(text: str, path: Path, wanted: Sections) -> str:
    """Return `text` with every value of `wanted` in it.

    Values that already mean the same are left as they are written; keys and sections that are not
    there yet are added at the end of their section or of the file.

    Raises:
        ConfigurationError: as `read_values`.
    """
    present = read_values(text, path)
    column = _comment_column(text, present)
    edits: list[tuple[int, int, str]] = []
    for name, values in wanted.items():
        if name not in present:
            lines = [f"  {key}: {value.text}\n" for key, value in values.items()]
            edits.append((len(text), len(text), f"\n{name}:\n{''.join(lines)}"))
            continue
        for key, value in values.items():
            old = present[name].get(key)
            if old is None:
                after = _line_end(text, max(v.end for v in present[name].values()))
                edits.append((after, after, f"\n  {key}: {value.text}"))
            elif not same(old.value, value.value):
                edits.append(_replacement(text, old, value.text, column))
    # from the end, so that offsets stay true; additions at one place keep their order
    edits.sort(key=lambda edit: edit[0])
    for start, end, new in reversed(edits):
        text = text[:start] + new + text[end:]
    return text


def same(a: Any, b: Any) -> bool:
    """Whether two parsed values are the same in type and value (`1` is not `true`, nor `1.0`)."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def _replacement(text: str, old: Value, new: str, column: int) -> tuple[int, int, str]:
    if text[old.start - 1] == ":":
        new = " " + new
    line_end = _line_end(text, old.end)
    comment, end = text[old.end : line_end].strip(), line_end
    if not comment.startswith("#"):
        end = old.end
        # that of a value on several lines may stand behind the key
        comment = text[old.start : _line_end(text, old.start)].strip()
    if not comment.startswith("#"):
        return old.start, end, new
    width = old.start - (text.rfind("\n", 0, old.start) + 1) + len(new)
    return old.start, end, new + " " * max(1, column - width) + comment


def _comment_column(text: str, present: Sections) -> int:
    columns: Counter[int] = Counter()
    for values in present.values():
        for value in values.values():
            rest = text[value.end : _line_end(text, value.end)]
            if rest.lstrip().startswith("#"):
                line_start = text.rfind("\n", 0, value.end) + 1
                columns[value.end - line_start + rest.index("#")] += 1
    return columns.most_common(1)[0][0] if columns else 0


def _line_end(text: str, offset: int) -> int:
    end = text.find("\n", offset)
    return len(text) if end < 0 else end
