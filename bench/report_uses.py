"""Sections of the report about what models are used for: serving, Ray, speech, vectors of texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from report_text import filled, table

_SERVING = (
    "Over loopback, {model}{options}, prompts of 32 tokens and answers of 256, not streamed: tokens a second of all "
    "clients together, in the median of the rounds, in turns with a peer where there is one: {peer}."
)
_MIXED = (
    "64 clients of {model}{options}, prompts of 8 to 1,000 tokens, half of the answers streamed: {answers} answers, "
    "{wrong} of them other than alone, {errors} errors; {tokens_per_second:.0f} tokens a second, first tokens after "
    "{first_token_p50:.1f} s in the middle and {first_token_p95:.1f} s in 95 of 100; memory of the last fifth of the "
    "time over the first is {memory_ratio:.2f}. After 64 clients left in the middle, {left} bytes of keys and values "
    "were kept."
)
_KEPT = (
    "Memory by fifths: {memory} MiB, of which {kept} MiB are keys and values: of the texts that are being written and "
    "of ended ones, which stay for those that begin alike."
)
_OFFLINE = (
    "Two replicas of {model} with a thread each, {rows} prompts of 100 tokens, answers of 128: `answer_file` takes "
    "{ray_seconds:.0f} s with the start of its actors, two `gossamer batch` with the halves {plain_seconds:.0f} s: "
    "{ray_over_plain:.2f} of their speed, and the same answers."
)
_HTTP = (
    "32 clients of {model} over HTTP, prompts of 100 tokens, answers of 128: {ray:.0f} tokens a second from two "
    "replicas behind Ray's front, {plain:.0f} from two plain servers with half of the clients each: "
    "{ray_over_plain:.2f} of that."
)
_KILLED = (
    "One of the two is killed while 32 clients ask, half of them streaming: {whole} whole answers and {streams} "
    "streams came all the same, {streams_that_ended_in_an_error_event} streams that had begun ended in an error event, "
    "{lost} requests were lost."
)
_CAPACITY = (
    "Two replicas of {model} under texts at random times, and the simulation of [capacity.md](capacity.md) of the same "
    "texts, by steps measured before and behind each load. Latency is that of 95 of 100 texts."
)
_SPEECH = (
    "Whisper-base, {files} clips of read speech, {beams} beams, {threads} threads, from file to text, taking turns; "
    "faster-whisper computes in {peer_type}. A step is one token of one text. Ratios are the medians of the rounds."
)
_VECTORS = (
    "all-MiniLM-L6-v2, {texts} sentences, {threads} threads, from text to vector, taking turns with `transformers` in "
    "float32; cosines are of both sides' vectors, 50% of the weights are zero in the last row of each number of texts."
)


_PEERS = {"gossamer": "ours", "openvino": "OpenVINO GenAI", "llama_cpp": "llama.cpp"}
_PROMPT_PEERS = (
    "`{gguf}`, {threads} threads: tokens a second of prompts, all sides taking turns. In brackets: how many times as "
    "fast ours are, in the median of the rounds."
)


def prompt_peers(document: dict[str, Any]) -> Iterator[str]:
    """Prompts of each side: a row for each length."""
    yield filled(_PROMPT_PEERS, gguf=document["gguf"], threads=document["threads"])
    rows = document["rows"]
    names = list(rows[0]["tokens_per_second"])
    lines = [
        [
            str(row["tokens"]),
            *(
                f"{row['tokens_per_second'][name]:.0f}" + ("" if name == "gossamer" else f" ({row['over'][name]:.2f})")
                for name in names
            ),
        ]
        for row in rows
    ]
    yield table(["tokens", *(_PEERS[name] for name in names)], lines)


def serving(document: dict[str, Any]) -> Iterator[str]:
    """The fixed load, a row for each number of clients; and the mixed one; whichever were measured."""
    about = {"model": document["model"], "options": f" with `{document['serve']}`" if document["serve"] else ""}
    if "fixed" in document:
        yield from _fixed(document, about)
    if "mixed" not in document:
        return
    mixed = document["mixed"]
    left = int(document["gone"]["kv_bytes"])
    yield filled(_MIXED, **about, **{**mixed, "errors": len(mixed["errors"]), "left": left})
    if "keys_and_values" in mixed:
        memory, kept = (", ".join(f"{it / 2**20:.0f}" for it in mixed[name]) for name in ("memory", "keys_and_values"))
        yield filled(_KEPT, memory=memory, kept=kept)


def _fixed(document: dict[str, Any], about: dict[str, str]) -> Iterator[str]:
    fixed = document["fixed"]
    peer = "none" if document["peer"] is None else f"`{document['peer'].split()[0]}` with a slot a client"
    yield filled(_SERVING, **about, peer=peer)
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


def ray(document: dict[str, Any]) -> Iterator[str]:
    """Two replicas on Ray beside two processes; whichever was measured."""
    about = {"model": document["model"]}
    if "offline" in document:
        yield filled(_OFFLINE, **about, **document["offline"])
    if "http" in document:
        yield filled(_HTTP, **about, **document["http"])
        yield filled(_KILLED, **document["killed"])


def capacity(document: dict[str, Any]) -> Iterator[str]:
    """The simulation beside what was measured, a row for each load."""
    yield filled(_CAPACITY, **document)
    lines = []
    for row in document["loads"]:
        line = [f"{row['rate']:.2f}"]
        for name, digits in (("tokens_per_second", 0), ("p95", 2)):
            line += [f"{row[f'{name}_measured']:.{digits}f}", f"{row[name]:.{digits}f} ({row[f'{name}_off']:+.0%})"]
        lines.append(line)
    yield table(["texts/s", "tokens/s", "simulated", "latency, s", "simulated"], lines, left=0)


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
