"""Text streams: what comes out in pieces is what decoding at once gives."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from llm_trainer.utils.streaming import TextStream
from tests.utils.tiny_text_model import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
VALUES = TOKENIZER.definition.token_values()
BYTES = [bytes([i]) for i in range(256)]


def stream_all(
    ids: list[int], values: list[bytes], stop: list[str]
) -> tuple[list[str], TextStream]:
    stream = TextStream(values, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.feed(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=60))
def test_any_tokens_come_out_as_decoded_at_once(ids: list[int]) -> None:
    pieces, stream = stream_all(ids, VALUES, [])
    assert "".join(pieces) == stream.text == TOKENIZER.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("naïve 你好 🙂🚀")
def test_a_text_comes_out_in_whole_characters(text: str) -> None:
    for values, ids in (
        (VALUES, TOKENIZER.encode(text, add_special_tokens=False)),
        (BYTES, list(text.encode())),  # the worst tokenizer: every character in pieces
    ):
        pieces, stream = stream_all(ids, values, [])
        assert stream.text == text
        shown = ""
        for piece in pieces[:-1]:
            shown += piece
            assert text.startswith(shown), "a half character was shown"
        assert pieces[-1] == "", "a whole text leaves nothing to hold back"


@given(st.binary(max_size=60))
def test_any_bytes_come_out_as_python_replaces_them(data: bytes) -> None:
    assert stream_all(list(data), BYTES, [])[1].text == data.decode("utf-8", "replace")


alphabet = st.text("ab\n", max_size=40)


@given(alphabet, st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3))
def test_stop_texts_cut_exactly_and_nothing_of_them_is_shown(text: str, stop: list[str]) -> None:
    pieces, stream = stream_all(list(text.encode()), BYTES, stop)
    # the stop text that is complete first ends the text; of those, the one that begins first
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stop)]
    if ends:
        expected = text[: ends[0] - max(len(s) for s in stop if text[: ends[0]].endswith(s))]
        assert stream.stopped
        assert len(pieces) == ends[0] + 1, "it stops with the token that completes the stop text"
    else:
        expected = text
        assert not stream.stopped
    assert "".join(pieces) == stream.text == expected


@given(alphabet, st.text("ab\n", min_size=1, max_size=5))
def test_only_what_may_become_a_stop_text_is_held_back(text: str, stop: str) -> None:
    stream = TextStream(BYTES, [stop])
    for i, byte in enumerate(text.encode()):
        stream.feed(byte)
        if stream.stopped:
            return
        held = text[len(stream.text) : i + 1]
        assert stop.startswith(held)
        assert len(held) < len(stop)


def test_a_stop_text_may_be_longer_than_many_tokens_and_within_one() -> None:
    values = [b"x", b"ab", b"cd", b"yabcdz"]
    assert stream_all([0, 1, 2, 0], values, ["abcd"])[1].text == "x"
    assert stream_all([0, 3, 0], values, ["abcd"])[1].text == "xy"
    assert stream_all([0, 1, 1, 2], values, ["abcd"])[1].text == "xab"
