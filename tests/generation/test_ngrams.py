"""Where a text said before what it says now, against a search through all positions."""

from __future__ import annotations

import numpy as np
import pytest

from gossamer.generation.ngrams import LONGEST, Corpus, TextIndex, common_end


def indexed(tokens: list[int]) -> TextIndex:
    index = TextIndex()
    index.extend(tokens)
    return index


@pytest.mark.parametrize("seed", range(5))
def test_the_end_is_found_where_it_occurred_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = TextIndex()
    found = 0
    for count in rng.integers(1, 4, 200):
        index.extend(rng.integers(0, 5, count).tolist())
        text = index.tokens
        lengths = [common_end(text, at, text, len(text) - 1) for at in range(len(text) - 1)]
        longest = max(lengths, default=0)
        at, length = index.find()
        if longest < 2:
            assert (at, length) == (0, 0)
        else:
            assert lengths[at - 1] == length >= 2
            found += length == longest
    assert found > 100, "the latest few ends of three tokens hold the longest mostly"


def test_of_equally_long_matches_the_latest_counts() -> None:
    index = indexed([1, 2, 3, 8, 1, 2, 3, 9, 1, 2, 3])
    assert index.find() == (7, 3)
    assert index.following(7, 3) == [9, 1, 2]


def test_longer_matches_count_before_later_ones() -> None:
    index = indexed([7, 1, 2, 3, 8, 6, 1, 2, 3, 9, 7, 1, 2, 3])
    assert index.find() == (4, 4)
    assert index.following(4, 2) == [8, 6]


def test_what_repeats_itself_goes_on() -> None:
    index = indexed([5, 1, 2, 1, 2])
    at, length = index.find()
    assert (at, length) == (3, 2)
    assert index.following(at, 7) == [1, 2, 1, 2, 1, 2, 1]


def test_long_matches_stop_counting() -> None:
    assert indexed([4] * 100).find()[1] == LONGEST


@pytest.mark.parametrize("tokens", [[], [1], [1, 1], [1, 2, 3, 4]])
def test_nothing_is_found_where_nothing_is(tokens: list[int]) -> None:
    assert indexed(tokens).find() == (0, 0)


def test_a_corpus_says_what_followed() -> None:
    corpus = Corpus([10, 11, 12, 13, 14, 20, 11, 12, 13, 15])
    at, length = corpus.find([9, 9, 10, 11, 12, 13])
    assert (corpus.following(at, 3), length) == ([14, 20, 11], 4)
    at, length = corpus.find([3, 11, 12, 13])
    assert (corpus.following(at, 3), length) == ([15], 3)
    assert corpus.find([14, 20]) == (0, 0), "two tokens are too few"
    assert corpus.find([12, 13, 15]) == (0, 0), "nothing followed"
    assert corpus.find([1, 2, 3]) == (0, 0)


def test_tokens_of_any_size_are_told_apart() -> None:
    big = (1 << 31) - 1
    corpus = Corpus([big, big - 1, big - 2, 7, big, big, big, 8])
    at, length = corpus.find([big, big - 1, big - 2])
    assert (corpus.following(at, 1), length) == ([7], 3)
    assert Corpus([1, 2]).find([1, 2, 3]) == (0, 0)
