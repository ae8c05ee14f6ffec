"""One text's state machine, given logits by hand: pieces, stops, limits, and what is counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fakes import EOS, LETTERS, FakeTokenizer
from gossamer.errors import GossamerError
from gossamer.generation.sampling_options import GENERATE, SamplingOptions
from gossamer.generation.sequence import Sequence
from gossamer.generation.stats import Stats
from gossamer.text.tokenizer import StreamDecoder

WORDS = [*LETTERS, "xyz"]
A, B, C, XYZ = (WORDS.index(word) for word in ("a", "b", "c", "xyz"))


class Bytes:
    """A tokenizer of bytes, 256 ending a text, whose streams are the real ones."""

    eos_ids = frozenset({256})

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def stream(self, begins: bool = False) -> StreamDecoder:  # noqa: ARG002 - as the tokenizer has it
        return StreamDecoder(self.decode)  # type: ignore[arg-type]


def likeliest(token: int, vocab: int = 300) -> Any:
    return np.eye(vocab, dtype=np.float32)[token]


def sequence(prompt: list[int], tokenizer: Any = None, *, context: int = 100, **options: Any) -> Sequence:
    stats = Stats(len(prompt), 1000, sampling=GENERATE.changed(options))
    return Sequence(
        prompt, tokenizer or FakeTokenizer(WORDS), stats, context=context, kv_bytes_read=lambda tokens: 10 * tokens
    )


def pushed(text: Sequence, tokens: list[int]) -> list[str]:
    """The pieces of tokens one by one, up to the text's end."""
    pieces = []
    for token in tokens:
        assert not text.finish
        pieces.append(text.push(likeliest(token)))
        if text.finish:
            break
    return pieces


def test_logits_become_tokens_and_tokens_pieces() -> None:
    text = sequence([A], max_new_tokens=3)
    assert pushed(text, [B, XYZ]) == ["b", "xyz"]
    assert (text.tokens, text.finish, text.stats.finish) == ([A, B, XYZ], "", "closed")
    assert pushed(text, [C]) == ["c"]
    assert (text.tokens, text.finish, text.stats.finish) == ([A, B, XYZ, C], "length", "length")


def test_the_end_token_has_no_text_and_is_counted() -> None:
    text = sequence([A])
    assert pushed(text, [B, EOS]) == ["b", ""]
    assert (text.finish, text.stats.new_tokens, text.tokens[-1]) == ("eos", 2, EOS)


@pytest.mark.parametrize(
    ("stop", "pieces", "finish"),
    [
        ("yzb", ["a", "x"], "stop"),  # over two pieces
        ("ax", [""], "stop"),
        ("y", ["a", "x"], "stop"),  # inside of one
        ("zbcq", ["a", "xy", "", "zbc"], "eos"),  # held back while it may come, given out at the end
        (("q", "bc"), ["a", "xyz", ""], "stop"),
    ],
)
def test_stop_strings_over_pieces(stop: Any, pieces: list[str], finish: str) -> None:
    text = sequence([C], stop=stop)
    found = pushed(text, [A, XYZ, B, C, EOS])
    assert "".join(found) == "".join(pieces)
    assert [piece for piece in found if piece] == [piece for piece in pieces if piece]
    assert text.finish == text.stats.finish == finish


def test_no_piece_is_half_a_character() -> None:
    text = sequence([65], Bytes(), max_new_tokens=10)
    coded = list("é€x".encode())
    assert pushed(text, coded) == ["", "é", "", "", "€", "x"]
    broken = sequence([65], Bytes(), max_new_tokens=2)
    assert "".join(pushed(broken, list("€".encode()))) == "\ufffd"  # the limit came within it
    ended = sequence([65], Bytes())
    assert "".join(pushed(ended, [*"€".encode()[:2], 256])) == "\ufffd"


def test_a_stop_string_ends_with_the_byte_that_completes_it() -> None:
    text = sequence([65], Bytes(), stop="€!")
    assert pushed(text, list("a€!".encode())) == ["a", "", "", "", ""]
    assert (text.finish, len(text.tokens)) == ("stop", 6)


def test_what_is_held_back_at_a_limit_comes_out_unless_it_completes_a_stop() -> None:
    lagging = FakeTokenizer(WORDS, lag=True)
    assert pushed(sequence([A], lagging, max_new_tokens=2), [B, C]) == ["", "bc"]
    text = sequence([A], lagging, max_new_tokens=2, stop="c")
    assert pushed(text, [B, C]) == ["", "b"]
    assert text.finish == "stop"


@pytest.mark.parametrize(("prompt", "new"), [([A, A, A, A], 1), ([A, A], 3)])
def test_the_context_ends_a_text_when_the_model_holds_no_more(prompt: list[int], new: int) -> None:
    text = sequence(prompt, context=4)
    assert len(pushed(text, [B] * 9)) == new  # the last is never fed
    assert (text.finish, len(text.tokens)) == ("context", 5)


def test_limits_give_way_to_the_end_token_and_to_stop_strings() -> None:
    text = sequence([A], context=1, max_new_tokens=1)
    assert pushed(text, [EOS]) == [""]
    assert text.finish == "eos"
    text = sequence([A], context=1, max_new_tokens=1, stop="b")
    assert pushed(text, [B]) == [""]
    assert text.finish == "stop"


def test_times_and_bytes_are_counted_by_token() -> None:
    text = sequence([A, A, A], max_new_tokens=50)
    text.push(likeliest(B), 3.0)
    assert 3 <= text.stats.prefill_seconds < 4
    assert (text.stats.decode_seconds, text.stats.kv_bytes) == (0, 0)
    text.push(likeliest(B), 1.0)
    assert text.stats.kv_bytes == 10 * 4
    text.push(likeliest(B), 1.0)
    assert 2 <= text.stats.decode_seconds < 3
    assert text.stats.kv_bytes == 10 * (4 + 5) / 2
    assert (text.stats.finish, text.stats.new_tokens) == ("closed", 3), "closed here, it tells how far it came"


def test_damaged_logits_leave_the_text_as_it_was() -> None:
    text = sequence([A])
    pushed(text, [B])
    with pytest.raises(GossamerError, match="not finite"):
        text.push(np.full(300, np.nan, np.float32))
    assert (text.tokens, text.finish, text.stats.new_tokens) == ([A, B], "", 1)


def test_the_number_of_the_draw_changes_what_is_drawn() -> None:
    def drawn(number: int) -> list[int]:
        options = SamplingOptions(temperature=1.0, seed=5, max_new_tokens=20)
        text = Sequence([A], FakeTokenizer(WORDS), Stats(1, 0, sampling=options), context=99, draw=number)  # type: ignore[arg-type]
        while not text.finish:
            text.push(np.zeros(len(WORDS), np.float32) - 99 * likeliest(EOS, len(WORDS)))
        return text.tokens

    assert drawn(0) == drawn(0) != drawn(1)


def test_log_probabilities_are_the_models_own() -> None:
    options = {"logprobs": 2, "logit_bias": {B: 50.0}, "temperature": 0.5, "repeat_penalty": 3.0}
    text = sequence([A], max_new_tokens=3, **options)
    logits = np.zeros(len(WORDS), np.float32)
    logits[[XYZ, C]] = [2, 1]
    text.push(logits)
    assert text.tokens == [A, B]
    (found,) = text.logprobs
    total = math.log(len(WORDS) - 2 + math.e + math.e**2)
    assert (found.token, found.text, found.bytes) == (B, "b", b"b")
    assert found.logprob == pytest.approx(-total)
    assert [(other.text, other.logprob) for other in found.top] == [
        ("xyz", pytest.approx(2 - total)),
        ("c", pytest.approx(1 - total)),
    ]
    assert found.to_dict()["top"][1] == {"token": C, "text": "c", "bytes": [99], "logprob": found.top[1].logprob}
    plain = sequence([A])
    plain.push(logits)
    assert plain.logprobs == []


def test_a_closed_text_gives_out_what_it_held_back_and_is_as_long_as_it_was() -> None:
    text = sequence([A], stop="bcd")
    assert pushed(text, [A, B, C]) == ["a", "", ""]
    assert text.close() == "bc"
    assert (text.finish, text.stats.finish, text.stats.new_tokens) == ("closed", "closed", 3)
    assert text.close() == ""
    ended = sequence([A])
    pushed(ended, [EOS])
    ended.close()
    assert ended.finish == "eos"
    assert text.completion("abc").tokens == (A, B, C)
