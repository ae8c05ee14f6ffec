"""What steps of a model take on this machine: measured in seconds, once, and kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import CacheFull
from ..folders import write_file
from ..machine.format_rates import agree, settled, wanted
from ..machine.roofline import kept_file, machine_key
from .cost import Table, context_read, estimated, known_table, reading_seconds
from .made_up import any_input, any_tokens

if TYPE_CHECKING:
    from .. import _core
    from ..arch.spec import Transformer
    from ..engine import Engine
    from ..progress import Progress
    from .model import Model

_SCHEMA = 2  # raised when what is measured, or how, changes
_TOKENS = (1, 2, 3, 4, 6, 8, 12, 16)
_NEAR, _FAR = 64, 4096  # contexts
_FAR_SECONDS = 2.0  # for the tokens between; a slow model's far context is nearer
_CHUNK = 256
_ROUNDS, _MOST_ROUNDS = 5, 12  # more where the machine is busy, so that steps differ by more than so much
_AGREED, _MOST_SECONDS = 0.06, 4.0
_ONCE = 0.004  # seconds of one number of tokens in one round


def known(engine: Engine, config: Transformer, weights: dict[str, _core.Weight]) -> Table:
    """Returns what was measured before of a model on this machine, or an estimate where nothing was."""
    key = _key(engine, config)
    try:
        document = json.loads(kept_file("steps", key).read_text(encoding="utf-8"))
        if document["key"] != key:
            raise ValueError("it is another model's")
        return _checked(document)
    except (OSError, ValueError, KeyError, TypeError):
        return estimated(engine, weights)


def measure(model: Model, progress: Progress | None = None, *, again: bool = False) -> None:
    """Measures what steps of a model take here where that is not known, in a few seconds; then `Model.cost` has it.

    Nobody else should use the model meanwhile. Nothing happens on a GPU, where GOSSAMER_MEASURE=0 forbids measuring,
    and where the cache has no room for it.

    Args:
        model: The model.
        progress: Called with (done, total, what).
        again: Measure in any case.
    """
    if model.config.head is None or model.cost is None or not wanted() or (model.cost.table.measured and not again):
        return
    engine, held = model.decoder, model._new_sequence(reads=any_input(model.config, _NEAR))
    try:
        table = _measure(engine, model.config.context, held.prepare(), progress or (lambda *_: None))
    except CacheFull:
        return
    finally:
        held.free()
    if table is None:
        return
    model.cost.adopt(table)
    key = _key(engine, model.config)
    document = {"key": key, "tokens": table.tokens, "base": table.base, "kv": table.kv, "weights": table.weights}
    with contextlib.suppress(OSError):  # then the next process measures again
        write_file(kept_file("steps", key), json.dumps(document, indent=1) + "\n")


def _key(engine: Engine, config: Transformer) -> dict[str, Any]:
    """What figures hold for."""
    model = json.dumps([config.to_dict(), engine.kernels()], sort_keys=True)
    return {
        "schema": _SCHEMA,
        "machine": machine_key(engine.threads),
        "model": hashlib.sha256(model.encode()).hexdigest()[:16],
        "weight_bytes": engine.weight_bytes,
        "kv": engine.kv,
    }


def _checked(document: dict[str, Any]) -> Table:
    """Raises ValueError, KeyError or TypeError where it is not what `measure` wrote."""
    tokens = tuple(int(n) for n in document["tokens"])
    base, kv = (tuple(float(value) for value in document[name]) for name in ("base", "kv"))
    weights = float(document["weights"])
    fair = len(tokens) == len(base) == len(kv) > 1 and tokens[0] == 1 and list(tokens) == sorted(set(tokens))
    if not fair or not all(0 <= value < math.inf for value in (*kv, weights)):
        raise ValueError("it is no table of steps")
    if not all(0 < value < math.inf for value in base):
        raise ValueError("a step takes no time")
    return Table(tokens, base, kv, weights, measured=True)


def _measure(engine: Engine, context: int, sequence: int, progress: Progress) -> Table | None:
    """Times steps at a short and at a longer context; None where a model holds too few tokens for that."""
    what, total = "measuring once how long steps take here", 2 * _ROUNDS + 2
    near = min(_NEAR, context // 4)
    counts = [n for n in _TOKENS if n <= context - near]
    if near < 1 or len(counts) < 2:
        return None
    progress(0, total, what)
    _append(engine, sequence, near)
    base = _times(engine, sequence, counts, lambda done: progress(1 + done, total, what))
    begun = time.perf_counter()
    far = near
    with contextlib.suppress(CacheFull):
        while (room := min(_FAR, context - counts[-1]) - far) > 0 and time.perf_counter() - begun < _FAR_SECONDS:
            _append(engine, sequence, min(_CHUNK, room))
            far = engine.length(sequence)
    kv: NDArray[np.float64] = np.zeros(len(counts))
    reads = context_read(engine)
    if reads(far) > reads(near):
        longer = _times(engine, sequence, counts, lambda done: progress(_ROUNDS + 2 + done, total, what))
        slopes = (np.array(longer) - base) / (reads(far) - reads(near))
        # Differences of few measurements: a line is surer. No context takes most of a short one's time.
        line = np.polyval(np.polyfit(counts, slopes, 1, w=1 / np.array(longer)), counts)
        kv = np.clip(line, 0.0, np.array(base) / (2 * reads(near)))
    progress(total, total, what)
    return known_table(counts, (np.array(base) - kv * reads(near)).tolist(), kv.tolist(), reading_seconds(engine))


def _append(engine: Engine, sequence: int, count: int) -> None:
    at = engine.length(sequence)
    engine.step([(sequence, any_tokens(engine.vocab, at, count))])


def _times(engine: Engine, sequence: int, counts: list[int], report: Any) -> list[float]:
    """Seconds of a step by tokens; all numbers of tokens take turns."""
    rounds: list[list[float]] = []
    repeats = [0] * len(counts)
    begun = time.perf_counter()
    while len(rounds) < _ROUNDS or (
        len(rounds) < _MOST_ROUNDS and time.perf_counter() - begun < _MOST_SECONDS and not agree(rounds, _AGREED)
    ):
        report(min(len(rounds), _ROUNDS))
        rounds.append([])
        for place, count in enumerate(counts):
            tokens = any_tokens(engine.vocab, 0, count)
            if not repeats[place]:  # the first one also warms up
                repeats[place] = max(1, min(100, int(_ONCE / _once(engine, sequence, tokens))))
            rounds[-1].append(float(np.median([_once(engine, sequence, tokens) for _ in range(repeats[place])])))
    return settled(rounds)


def _once(engine: Engine, sequence: int, tokens: Any) -> float:
    start = time.perf_counter()
    engine.step([(sequence, tokens)], all_logits=True)
    seconds = time.perf_counter() - start
    engine.rollback(sequence, len(tokens))
    return seconds
