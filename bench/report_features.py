"""Sections of the report about what the engine does beside one free text: many at once, adapters, experts, grammars."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from report_text import filled, table

_TOGETHER = (
    "Random weights in the shape of real models; prompts of {prompt} tokens, and {new_tokens} written behind each. "
    "Tokens a second of all texts together, in the median of the rounds, which take turns, and over those of one text."
)
_ADAPTERS = (
    "Random int8 weights in the shape of {shape}, a step at a context of {context} tokens; {threads} threads. Low-rank "
    "factors have rank {rank}, in `sora` half of them shut by gates; differences change {share:.0%} of the values, "
    "those of a task and of a language; two parallel matrices hold three quarters of zeros each, in place of one with "
    "half. Medians of steps that take turns. Another choice of adapters takes {switch:.2f} ms at most."
)
_EXPERTS = (
    "A model of {model}' shape, {weights}, {sparsity:.0%} zeros, at a context of {context} tokens; {threads} threads. "
    "The same weights with more or fewer experts chosen a token, taking turns. The last column is speed times bytes, "
    "over those of the first row: 1 where speed follows bytes alone."
)
_GRAMMARS = (
    "{model}, texts held to JSON schemas in turns with free ones of the same prompts: {valid} of {texts} are valid by "
    "another validator. Tokens are those of the texts held. The ratio is tokens a second over those of free texts, "
    "{ratio:.2f} in the median of all; tokens that a schema leaves no choice about are not computed one by one."
)
_ACCURACY = (
    "Logits of {model} over {tokens} tokens of text. The largest differences to `transformers` in float32, over the "
    "same weights, with 32-bit activations; and those between formats that store the same values."
)
_LLAMA = (
    "Beside llama.cpp, which rounds activations, behind {positions} positions that both are given: differences of "
    "{median_difference:.2f} in the median and {largest_difference:.2f} at most. Where the best token leads by more "
    "than twice the difference at its place both choose the same {same_where_clear} of "
    "{clear_of_their_own_difference} times, anywhere {same_anywhere} times."
)
_FIRST = (
    "From the command to the end of the answer to “{question}”: the first time the model is downloaded, which depends "
    "on the network, pruned and packed; the second time it lies there."
)
_LINEAR = (
    "`torch.nn.Linear` beside the layer on packed weights that takes its place, square ones; torch {torch}, {threads} "
    "threads, taking turns. The ratio is torch's seconds over ours."
)
_GENERATE = (
    "`generate` of `transformers` {transformers} with a pruned SmolLM2-135M: dense in torch {torch}, and with packed "
    "linear layers, taking turns; {threads} threads, {tokens} tokens. Dense reaches {dense_tokens_per_second:.1f} "
    "tokens a second."
)


def together(document: dict[str, Any]) -> Iterator[str]:
    """A row for each model and number of texts."""
    yield filled(_TOGETHER, **document["setup"])
    lines = [
        [
            row["model"],
            f"{row['weights']}, {row['sparsity']:.0%} zeros",
            str(row["texts"]),
            f"{row['tokens_per_second']:.0f}",
            f"{row['times_one']:.2f}",
        ]
        for row in document["rows"]
    ]
    yield table(["model", "blocks", "texts", "tokens/s", "over one"], lines, left=2)


def adapters(document: dict[str, Any]) -> Iterator[str]:
    """A row for each choice of adapters."""
    yield filled(_ADAPTERS, **document, switch=1e3 * document["switch_seconds"])
    lines = []
    for row in document["rows"]:
        figures = [f"{1e3 * row['seconds']:.2f}", f"{row['bytes_per_token'] / 1e6:.0f}", f"{row['ratio']:.2f}"]
        lines.append([row["what"], *figures, row["time_over"]])
    yield table(["what", "step, ms", "MB a token", "times as long", "as"], lines)


def experts(document: dict[str, Any]) -> Iterator[str]:
    """A row for each number of experts chosen."""
    yield filled(_EXPERTS, **document)
    lines = []
    for row in document["rows"]:
        speed = f"{row['tokens_per_second']:.1f} ± {row['deviation']:.1f}"
        sizes = (f"{row['bytes_per_token'] / 1e6:.0f}", f"{row['bytes_per_second'] / 1e9:.1f}")
        lines.append([str(row["chosen"]), speed, *sizes, f"{row['follows']:.2f}"])
    yield table(["experts", "tokens/s", "MB a token", "GB/s", "speed by bytes"], lines, left=0)


def grammars(document: dict[str, Any]) -> Iterator[str]:
    """A row for each schema."""
    yield filled(_GRAMMARS, **document)
    lines = [
        [row["schema"], f"{row['valid']} of {row['texts']}", str(row["tokens"]), f"{row['ratio']:.2f}"]
        for row in document["rows"]
    ]
    yield table(["schema", "valid", "tokens", "ratio"], lines)


def accuracy(document: dict[str, Any]) -> Iterator[str]:
    """How far logits are from those of others, and of other formats."""
    model = document.get("model", "a model of the Llama family, a GGUF file that the results do not name,")
    yield filled(_ACCURACY, **{**document, "model": model})
    lines = [[f"`transformers`, cache {kv}", f"{document[f'transformers_{kv}_kv']:.1e}"] for kv in ("f32", "f16")]
    for key, differences in document.items():
        if key.startswith("formats_"):
            kind = key.removeprefix("formats_")
            others = {name: most for name, most in differences.items() if name != "dense"}
            lines += [[f"{name} for dense, {kind}", f"{most:.1e}"] for name, most in others.items()]
    yield table(["beside", "largest difference"], lines)
    if "llama_cpp" in document:
        yield filled(_LLAMA, **document["llama_cpp"])


def first_run(document: dict[str, Any]) -> Iterator[str]:
    """A row for each run."""
    yield filled(_FIRST, **document["setting"])
    names = {"load": "import and load, in Python"}
    lines = [[names.get(row["run"], row["run"]), f"{row['seconds']:.1f}"] for row in document["rows"]]
    yield table(["run", "seconds"], lines)


def torch_linear(document: dict[str, Any]) -> Iterator[str]:
    """A row for each size, number of tokens and kind of layer."""
    yield filled(_LINEAR, **document)
    lines = []
    for row in document["rows"]:
        kinds = [row["dense"], f"{row['format']} {row['weights']}"]
        times = (f"{1e3 * row[f'{side}_seconds']:.2f}" for side in ("dense", "sparse"))
        line = [*kinds, str(row["size"]), f"{row['zeros']:.0%}", str(row["batch"]), *times, f"{row['ratio']:.2f}"]
        lines.append(line)
    yield table(["torch", "ours", "size", "zeros", "tokens", "torch, ms", "ours, ms", "ratio"], lines, left=2)


def torch_generate(document: dict[str, Any]) -> Iterator[str]:
    """A row for each type of the packed weights."""
    yield filled(_GENERATE, **document)
    lines = []
    for row in document["rows"]:
        packed = f"{row['packed']} of {row['layers']}"
        lines.append([row["weights"], packed, f"{row['tokens_per_second']:.1f}", f"{row['ratio']:.2f}"])
    yield table(["weights", "layers packed", "tokens/s", "over dense"], lines)
