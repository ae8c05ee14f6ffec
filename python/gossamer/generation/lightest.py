"""The value types that make a checkpoint lightest while its predictions stay near: bytes weighed against divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import GossamerError
from ..formats import STORED
from ..progress import Progress
from ..text.calibration import cut
from .divergence import log_probabilities, mean_divergence

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint
    from ..packing.folder import PackedModel

DIVERGENCE = 0.02  # nats a token: dense int8 costs SmolLM2 a quarter of that, and int4 fifteen times as much

_WINDOWS, _LENGTH = 8, 512
# Of blocks and of the head, which is at most a step finer: more would cost more than blocks a step finer.
_CHOICES = (("int4", "int4"), ("int4", "int8"), ("int8", "int4"), ("int8", "int8"), ("int8", STORED), (STORED, STORED))


@dataclass(frozen=True)
class Candidate:
    """One choice of value types.

    Attributes:
        weights: Type of the blocks' values.
        head: Type of the values of embedding and head.
        bytes: Weights that a token reads.
        divergence: KL(stored || packed) in nats, the mean over the tokens of the text.
    """

    weights: str
    head: str
    bytes: int
    divergence: float


def lightest(
    checkpoint: Checkpoint,
    text: str,
    *,
    bound: float = DIVERGENCE,
    weights: str = "auto",
    head: str = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> tuple[PackedModel, list[Candidate]]:
    """Packs a checkpoint with the fewest bytes a token whose predictions on a text stay within a bound.

    What is compared with are the checkpoint's own values, multiplied in float32; what is tried are int4, int8 and the
    types as they are stored, for the blocks and for the head, lightest first. If even the stored types are beyond the
    bound, since activations are rounded to 8 bits, they are taken.

    Args:
        checkpoint: The source.
        text: What to measure on: up to 8 windows of 512 tokens from its beginning.
        bound: Most nats a token.
        weights: Type of the blocks' values; "auto" is searched.
        head: Type of embedding and head; "auto" is searched.
        progress: Called with (done, total, what).
        options: As for `pack_checkpoint`.

    Returns:
        The packed model, and what was tried, in order; the last is what was taken.

    Raises:
        GossamerError: the text is shorter than two tokens, or see `pack_checkpoint`.
    """
    from ..packing.convert import pack_checkpoint
    from .ready import ready

    report = progress or (lambda *_: None)
    reference = ready(pack_checkpoint(checkpoint, weights=STORED, format="dense", progress=progress), activations="f32")
    length = min(_LENGTH, reference.config.context)
    windows, _ = cut(text, reference.tokenizer, length)
    windows = windows[: _WINDOWS * _LENGTH // length]
    tokens = sum(map(len, windows))
    if tokens < 2:
        raise GossamerError(f"weighing types needs a text of at least 2 tokens, got {tokens}")
    tried: list[Candidate] = []
    choices = _choices(weights, head)
    if len({blocks for blocks, _ in choices}) > 1:
        # Few bits are not always few bytes: the format that is faster here may leave out the zeros of int8 alone.
        types = {type for choice in choices for type in choice}
        sizes = {type: _sizes(pack_checkpoint(checkpoint, weights=type, head=type, **options)) for type in types}
        choices.sort(key=lambda choice: sizes[choice[0]][0] + sizes[choice[1]][1])
    for blocks, ends in choices:
        packed = pack_checkpoint(checkpoint, weights=blocks, head=ends, progress=progress, **options)
        model = ready(packed)
        cost = 0.0
        for done, window in enumerate(windows):
            report(done, len(windows), f"weighing {blocks}, head {ends}")
            dense = log_probabilities(reference.logits(window))
            cost += mean_divergence(dense, model.logits(window)) * len(window) / tokens
        report(len(windows), len(windows), f"weighing {blocks}, head {ends}")
        tried.append(Candidate(blocks, ends, model.decoder.weight_bytes, cost))
        if cost <= bound:
            break
    return packed, tried


def _choices(weights: str, head: str) -> list[tuple[str, str]]:
    """What is tried; a type that is given, and never tried otherwise, stands for every one in its place."""
    known = [(b, h) for b, h in _CHOICES if weights in ("auto", b) and head in ("auto", h)]
    every = [(b if weights == "auto" else weights, h if head == "auto" else head) for b, h in _CHOICES]
    return known or list(dict.fromkeys(every))


def _sizes(packed: PackedModel) -> tuple[int, int]:
    """Returns the bytes of the blocks' weights and of the head."""
    inside = sum(weight.nbytes for name, weight in packed.weights.items() if "." in name)
    return inside, packed.weights.get("head", packed.weights["embed"]).nbytes
