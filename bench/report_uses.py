"""Sections of the report about what models are used for: serving, speech, vectors of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from report_text import filled, table

_SERVING = (
    "Over loopback, {model}{options}, prompts of 32 tokens and answers of 256, not streamed: tokens a second of all "
    "clients together, in the median of the rounds, in turns with a peer where there is one: {peer}."
)
_MIXED = (
    "64 clients, prompts of 8 to 1,000 tokens, half of the answers streamed: {answers} answers, {wrong} of them other "
    "than alone, {errors} errors; {tokens_per_second:.0f} tokens a second, first tokens after {first_token_p50:.1f} s "
    "in the middle and {first_token_p95:.1f} s in 95 of 100; memory of the last fifth of the time over the first "
    "is {memory_ratio:.2f}. After 64 clients left in the middle, {left} bytes of keys and values were kept."
)
_SPEECH = (
    "Whisper-base, {files} clips of read speech, {beams} beams, {threads} threads, from file to text, taking turns; "
    "faster-whisper computes in {peer_type}. A step is one token of one text. Ratios are the medians of the rounds."
)
_VECTORS = (
    "all-MiniLM-L6-v2, {texts} sentences, {threads} threads, from text to vector, taking turns with `transformers` in "
    "float32; cosines are of both sides' vectors, 50% of the weights are zero in the last row of each number of texts."
)


def serving(document: dict[str, Any]) -> Iterator[str]:
    """The fixed load, a row for each number of clients; and the mixed one."""
    fixed, mixed = document["fixed"], document["mixed"]
    peer = "none" if document["peer"] is None else f"`{document['peer'].split()[0]}` with a slot a client"
    options = f" with `{document['serve']}`" if document["serve"] else ""
    yield filled(_SERVING, model=document["model"], options=options, peer=peer)
    rates = fixed["tokens_per_second"]
    header = [
        "clients",
        "tokens/s",
        "over one client",
        *(["peer, tokens/s", "over the peer"] if "peer" in rates else []),
    ]
    lines = []
    for clients, rate in rates["gossamer"].items():
        line = [clients, f"{rate:.0f}", f"{fixed['over_one_client'][clients]:.2f}"]
        if "peer" in rates:
            line += [f"{rates['peer'][clients]:.0f}", f"{fixed['over_peer'][clients]:.2f}"]
        lines.append(line)
    yield table(header, lines, left=0)
    yield filled(_MIXED, **{**mixed, "errors": len(mixed["errors"]), "left": int(document["gone"]["kv_bytes"])})


def speech(document: dict[str, Any]) -> Iterator[str]:
    """A row for each model."""
    yield filled(_SPEECH, **document)
    first, lines = document["rows"][0]["side"], []
    for row in document["rows"]:
        step = f"{1000 * row['step_seconds']:.1f} ({row['step_over_first']:.2f})" if "step_seconds" in row else ""
        wrong = f"{row['wrong']} of {row['words']}" if "words" in row else ""
        lines.append(
            [
                row["side"],
                f"{row['seconds']:.2f}",
                f"{row['over_first']:.2f}",
                f"{row.get('over_peer', 1):.2f}",
                step,
                wrong,
            ]
        )
    peer = "times the peer's speed"
    yield table(["side", "seconds", f"times {first}'s speed", peer, "step, ms (speed)", "words wrong"], lines)


def vectors(document: dict[str, Any]) -> Iterator[str]:
    """A row for each side and number of texts at once."""
    yield filled(_VECTORS, **document)
    lines = [
        [
            row["side"],
            str(row["batch"]),
            f"{row['per_second']:.0f}",
            f"{row['over_torch']:.2f}",
            f"{row['least_cosine']:.5f}",
        ]
        for row in document["rows"]
    ]
    yield table(["side", "texts at once", "sentences/s", "times torch's speed", "least cosine"], lines)
