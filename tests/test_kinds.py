"""Arguments of a kind that Python would take for another are refused by name; numbers of numpy are numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from gossamer.audio.options import SpeechOptions
from gossamer.errors import GossamerError
from gossamer.finetune.options import Options
from gossamer.kinds import check_flag, whole_number
from gossamer.pruning.options import PruneOptions

NAN = float("nan")


def _prune(**options: Any) -> PruneOptions:
    return PruneOptions(**{"method": "sparsegpt", **({} if "pattern" in options else {"sparsity": 0.5}), **options})


@pytest.mark.parametrize("value", [True, 1.0, "2", None, NAN, np.float32(2), np.bool_(True), [1]])
def test_whole_numbers_are_no_others(value: Any) -> None:
    with pytest.raises(GossamerError, match=r"^most must be a whole number, got "):
        whole_number("most", value, 1)


def test_numbers_of_numpy_become_pythons() -> None:
    assert type(whole_number("most", np.int64(2), 1)) is int
    options = Options(tokens=np.int64(5), lr=np.float32(0.5), seed=np.uint8(3))
    assert {type(value) for value in asdict(options).values()} <= {int, float, str, bool, dict}
    assert (options.tokens, options.lr, options.seed) == (5, 0.5, 3)
    with pytest.raises(GossamerError, match=r"^most must be at least 1, got 0$"):
        whole_number("most", np.int64(0), 1)


def test_flags_are_true_or_false() -> None:
    check_flag("chat", None, or_none=True)
    for value in ("no", 1, 0, None, np.int64(1)):
        with pytest.raises(GossamerError, match=r"^chat must be true or false, got "):
            check_flag("chat", value)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (_prune, {"windows": 1.5}, "windows must be a whole number, got 1.5"),
        (_prune, {"rank": True}, "rank must be a whole number, got True"),
        (_prune, {"sparsity": True}, "sparsity must be a number or None, got True"),
        (_prune, {"sparsity": NAN}, "sparsity must be at least 0 and below 1, got nan"),
        (_prune, {"length": 8.0}, "length must be a whole number or None, got 8.0"),
        (_prune, {"seed": -1}, "seed must be at least 0, got -1"),
        (_prune, {"pattern": "2:4"}, "pattern must be two whole numbers, got '2:4'"),
        (_prune, {"pattern": (2, 4, 8)}, "pattern must be two whole numbers, got (2, 4, 8)"),
        (_prune, {"pattern": (True, 4)}, "pattern must be two whole numbers, got (True, 4)"),
        (_prune, {"calibration": ""}, "calibration must name a file or folder"),
        (_prune, {"group": 32}, "group 32 goes with weights int4, and they are stored"),
        (Options, {"group": 32}, "group 32 goes with weights int8 or int4, and they are stored as they are"),
        (Options, {"tokens": 2e6}, "tokens must be a whole number, got 2000000.0"),
        (Options, {"recompute": "no"}, "recompute must be true or false, got 'no'"),
        (Options, {"lr": "1e-4"}, "lr must be a number, got '1e-4'"),
        (Options, {"loss": None}, "loss must be Parts, got None"),
        (SpeechOptions, {"timestamps": "no"}, "timestamps must be true or false, got 'no'"),
        (SpeechOptions, {"words": 1}, "words must be true or false, got 1"),
        (SpeechOptions, {"temperatures": ("a",)}, "a temperature must be a number, got 'a'"),
        (SpeechOptions, {"temperatures": (True,)}, "a temperature must be a number, got True"),
        (SpeechOptions, {"temperatures": (0.0, NAN)}, "a temperature must be finite and at least 0, got nan"),
        (SpeechOptions, {"temperatures": (0.0, -0.2)}, "a temperature must be finite and at least 0, got -0.2"),
        (SpeechOptions, {"temperatures": ()}, "temperatures must be numbers, at least one, got ()"),
        (SpeechOptions, {"temperatures": 0.0}, "temperatures must be numbers, at least one, got 0.0"),
        (SpeechOptions, {"prompt": None}, "prompt must be a text, got None"),
    ],
)
def test_options_are_refused_by_name(make: Callable[..., Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(GossamerError) as error:
        make(**options)
    assert str(error.value) == words or str(error.value).startswith(words)


def test_temperatures_of_numpy_become_pythons() -> None:
    temperatures = SpeechOptions(temperatures=[np.float32(0.5), 1]).temperatures  # type: ignore[arg-type]
    assert temperatures == (0.5, 1.0)
    assert {type(one) for one in temperatures} == {float}


def test_patterns_of_lists_are_pairs() -> None:
    assert _prune(pattern=[np.int64(2), 4]).pattern == [2, 4]
