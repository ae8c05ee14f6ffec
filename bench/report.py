"""Makes docs/performance.md and docs/roofline.svg from the files in bench/results.

    python bench/report.py

No number of that page is written by hand. The plot needs matplotlib (the [plot] extra).
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import report_features
import report_uses
from report_plot import plot, roof
from report_text import filled, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "bench" / "results", ROOT / "docs"
PLOT = "roofline.svg"

Document = dict[str, Any]
_SIDES = ("dense", "sparse")

_INTRODUCTION = (
    "Made by `python bench/report.py` from the files in `bench/results`; every section names its own. Absolute figures "
    "drift from machine to machine and from hour to hour: ratios are of runs that took turns in one sitting, given as "
    "the median of the rounds and their span."
)
_KERNELS = (
    "Every kernel over weights beyond every cache, at the shapes of the linears of {models}; {threads} threads. GB/s "
    "counts the bytes of packed weights. The roof is the bandwidth of reads that do nothing with the bytes, plain or "
    "prefetched, whichever is better, taking turns with the kernel; in the median of all rows {roof:.1f} GB/s. Figures "
    "are medians over the shapes, with the span of the shares."
)
_IN_CACHE = (
    "Every kernel over one weight again and again, at the shapes of the linears of {models}; {threads} threads. GB/s "
    "counts the bytes of the packed weight. Figures are medians over the shapes."
)
_WINS = (
    "Bandwidth a core under which a kernel with zeros is faster than the one for dense weights of the same type, from "
    "their rates in cache:"
)
_LLAMA = (
    "{source}; {threads} threads, {rounds} rounds. Tokens a second; the ratio is ours over llama.cpp's. Heads are "
    "dense and weigh much in small models, so their types are named for both."
)
_DEEPSPARSE = (
    "A stack of {size}x{size} int8 layers at batch 1; {threads} threads, {rounds} rounds, DeepSparse {version}; ours "
    "with a scale for every {group} inputs. G weight positions a second, zeros included; the ratio is ours over "
    "DeepSparse's, in the median of all rows {median_ratio:.2f}."
)
_OVERHEAD = (
    "A decode step at a context of {context} tokens beside its products alone, as the engine runs them (region by "
    "region, each with its barrier) and in regions so long that no thread waits for another. The overhead is the part "
    "of the step that is not in the products."
)
_WHOLE = (
    "Random weights in the shape of real models, zeros at random places in the matrices of the blocks; sparse beside "
    "dense of the same value type, taking turns. Bytes allow: bytes a token of dense over those of sparse. The speedup "
    "is the median of the rounds and their span."
)
_FORMATS = (
    "The formats that `auto` chooses beside every single one, as tokens a second, taking turns. The last column is the "
    "speed of `auto` over the best single format's."
)
_PROMPTS = (
    "Prompts of the shape of SmolLM2-135M, dense int8, as tokens a second by type of the KV cache, taking turns. In "
    "brackets: times as fast as {base}."
)
_BATCH = (
    "The shape of Llama-3.2-1B: seconds of a step of several tokens over those of a step of one, taking turns, by type "
    "of the blocks and zeros."
)

_ATTENTION = (
    "Decoding behind 4,096 tokens: what attention reads of keys and values, beside plain reads of memory, by query "
    "heads, KV heads, their width, and layers."
)
_DEPTH = (
    "The shape of SmolLM2-135M, dense: tokens a second by depth of the text and type of the KV cache, taking turns. In "
    "brackets: times as fast as {base}."
)
_DRAFTS = (
    "SmolLM2-135M-Instruct, {weights}: tokens a second with `--draft auto` over those with `off`, taking turns, by "
    "kind of text, over several prompts. Copied: what is quoted, edited, or written out again."
)
_CONVERSION = "A checkpoint of {model}'s shape in bf16, {size:.1f} GB, from the page cache; memory with mapped files."


def read_results() -> dict[str, Document]:
    """Returns every result by the name of its file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def page(results: dict[str, Document]) -> str:
    """Returns the text of docs/performance.md; results that are not there are named at its end."""
    parts = ["# Performance", filled(_INTRODUCTION)]
    missing = []
    for name, (title, command, render) in SECTIONS.items():
        found = [one for one in sorted(results) if one == name or one.startswith(f"{name}-")]
        if not found:
            missing.append(f"- `bench/results/{name}.json` ({title}): `{command}`")
            continue
        parts.append(f"## {title}")
        for one in found:
            parts += [_origin(one, results[one]), *render(results[one])]
            if one == "kernels" and not results[one]["in_cache"]:
                parts.append(f"![The kernels below the roof]({PLOT})")
    if missing:
        parts += ["## Not measured yet", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def kernels(document: Document) -> Iterator[str]:
    """A table for each instruction set, with a row for each kernel, sparsity and batch."""
    groups: dict[tuple[str, float, int], list[Document]] = {}
    for row in document["rows"]:
        groups.setdefault((row["kernel"], round(row["zeros"], 2), row["batch"]), []).append(row)
    models = ", ".join(dict.fromkeys(model for row in document["rows"] for model in row["models"]))
    header = ["kernel", "zeros", "tokens", "G positions/s", "GB/s"]
    if document["in_cache"]:
        yield filled(_IN_CACHE, models=models, threads=document["threads"])
    else:
        yield filled(_KERNELS, models=models, threads=document["threads"], roof=roof(document))
        header.append("share of the roof")
    for isa in dict.fromkeys(name.partition("__")[2] for name, _, _ in groups):
        lines = []
        for (name, zeros, batch), rows in groups.items():
            if name.partition("__")[2] != isa:
                continue
            medians = (f"{_median(rows, key):.1f}" for key in ("positions_per_second", "bandwidth"))
            line = [f"`{name}`", f"{zeros:.0%}", str(batch), *medians]
            if not document["in_cache"]:
                shares = [row["share"] for row in rows]
                line.append(_span({"median": statistics.median(shares), "min": min(shares), "max": max(shares)}))
            lines.append(line)
        yield f"### {isa}"
        yield table(header, lines)


def acceptance(document: Document) -> Iterator[str]:
    """What was asked for, and what was measured."""
    lines = []
    for row in document["rows"]:
        bound = f"at most {row['at_most']}" if "at_most" in row else f"at least {row['at_least']}"
        rates = ", ".join(f"{one['bandwidth']:.1f}" for one in row["measured"])
        lines.append([row["what"], f"{row['value']:.2f}", bound, "yes" if row["reached"] else "no", rates])
    yield table(["what", "measured", "wanted", "reached", "GB/s"], lines)
    yield filled(_WINS)
    wins = [(f"`{kernel}`", _bandwidth(limit)) for kernel, limit in document["avx2_wins_below"].items()]
    yield table(["kernel", "GB/s a core"], [line for line in wins if not line[0].startswith("`dense")])


def llama_cpp(document: Document) -> Iterator[str]:
    """Whole models beside llama.cpp: a row for each pair."""
    pairs = document["pairs"]
    source = f"`{document['gguf']}`, and models pruned from it"
    if not document["gguf"]:
        source = f"Random weights in the shape of {pairs[0]['gossamer']['model']}, on both sides"
    yield filled(_LLAMA, source=source, threads=document["threads"], rounds=document["rounds"])
    tests = [key.removesuffix("_ratio") for key in pairs[0] if re.fullmatch(r"(pp|tg)\d+_ratio", key)]
    header = ["llama.cpp", "gossamer", "file, MB", "ours a token, MB"]
    header += [f"{test}{what}" for test in tests for what in (", llama.cpp", ", ours", ", ratio")]
    if document["text"]:
        header += ["perplexity, llama.cpp", "perplexity, ours"]
    lines = []
    for pair in pairs:
        theirs, ours = pair["llama_cpp"], pair["gossamer"]
        line = [f"{theirs['type']}, head {theirs.get('head', 'not recorded')}", _kinds(ours)]
        line += [f"{size / 1e6:.0f}" for size in (theirs["file_bytes"], ours["bytes_per_token"])]
        for test in tests:
            line += [*(f"{side[test]['median']:.1f}" for side in (theirs, ours)), _span(pair[f"{test}_ratio"])]
        if document["text"]:
            line += [f"{side['perplexity']:.1f}" for side in (theirs, ours)]
        lines.append(line)
    yield table(header, lines, left=2)


def deepsparse(document: Document) -> Iterator[str]:
    """Stacks of layers beside DeepSparse."""
    version = ", ".join(dict.fromkeys(row["deepsparse_version"] for row in document["rows"]))
    yield filled(_DEEPSPARSE, version=version, **document)
    lines = []
    for row in document["rows"]:
        speeds = (f"{row[side]['positions_per_second']:.1f}" for side in ("deepsparse", "gossamer"))
        lines.append([str(row["layers"]), f"{row['sparsity']:.0%}", row["format"], *speeds, _span(row["ratio"])])
    yield table(["layers", "zeros", "our format", "DeepSparse", "ours", "ratio"], lines, left=0)


def overhead(document: Document) -> Iterator[str]:
    """What a step takes beside its products: a row for each model."""
    yield filled(_OVERHEAD, **document)
    lines = []
    for row in document["rows"]:
        times = (f"{1e3 * row['seconds'][name]:.2f}" for name in ("step", "regions", "no_barriers"))
        shares = (f"{row['overhead'][name]:.1%}" for name in ("regions", "no_barriers"))
        lines.append([row["model"], str(row["threads"]), *times, *shares])
    header = ["model", "threads", "step, ms", "products, ms", "without barriers, ms", "overhead", "without barriers"]
    yield table(header, lines)


def whole_models(document: Document) -> Iterator[str]:
    """Sparse beside dense: a row for each model and fraction of zeros."""
    yield filled(_WHOLE)
    lines = []
    for row in document["rows"]:
        ratios = [dense / sparse for dense, sparse in zip(*(row["seconds"][side] for side in _SIDES), strict=True)]
        zeros = row["zeros"] if ":" in row["zeros"] else f"{float(row['zeros']):.0%}"
        line = [row["model"], row["weights"], row["head"], zeros, ", ".join(row["formats"])]
        line += [f"{row['tokens_per_second'][side]:.1f}" for side in _SIDES]
        line.append(_span({"median": row["speedup"], "min": min(ratios), "max": max(ratios)}))
        lines.append([*line, f"{row['bytes_allow']:.2f}", f"{row['asked']:.2f}"])
    header = ["model", "blocks", "head", "zeros", "formats", *_SIDES, "speedup", "bytes allow", "asked"]
    yield table(header, lines, left=5)


def format_choices(document: Document) -> Iterator[str]:
    """`auto` beside every single format: a row for each model, type and fraction of zeros."""
    yield filled(_FORMATS)
    rows = document["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["tokens_per_second"]))
    lines = []
    for row in rows:
        speeds = [f"{row['tokens_per_second'][name]:.1f}" for name in names]
        line = [row["model"], row["weights"], f"{float(row['zeros']):.0%}", ", ".join(row["auto"]), *speeds]
        lines.append([*line, f"{row['auto_over_best']:.2f}"])
    yield table(["model", "blocks", "zeros", "auto chooses", *names, "over best"], lines, left=4)


def prompts(document: Document) -> Iterator[str]:
    """Prompts by type of the KV cache: a row for each length."""
    yield from _by_cache(_PROMPTS, document, "speedup", "tokens")


def batches(document: Document) -> Iterator[str]:
    """What steps of several tokens cost: a row for each type and fraction of zeros."""
    yield filled(_BATCH)
    rows = document["rows"]
    counts = [count for count in rows[0]["cost"] if count != "1"]
    lines = [
        [row["weights"], f"{float(row['zeros']):.0%}", *(f"{row['cost'][count]:.2f}" for count in counts)]
        for row in rows
    ]
    yield table(["blocks", "zeros", *(f"{count} tokens" for count in counts)], lines, left=1)


def attention(document: Document) -> Iterator[str]:
    """How fast keys and values are read: a row for each shape and type."""
    yield filled(_ATTENTION)
    lines = [
        [f"{row['shape']}", row["kv"], f"{row['gigabytes_per_second']:.1f}", f"{row['share']:.0%}"]
        for row in document["rows"]
    ]
    yield table(["shape", "KV cache", "GB/s", "of plain reads"], lines, left=2)


def depths(document: Document) -> Iterator[str]:
    """Decoding by depth: a row for each type of weights and depth."""
    yield from _by_cache(_DEPTH, document, "over_{base}", "weights", "depth")


def _by_cache(text: str, document: Document, ratio: str, *names: str) -> Iterator[str]:
    """Tokens a second by type of the KV cache, with what a row has as `ratio`: a row for each of what `names` name."""
    types = list(document["rows"][0]["tokens_per_second"])
    yield filled(text, base=types[0])
    lines = []
    for row in document["rows"]:
        times = row[ratio.format(base=types[0])]
        speeds = (f"{row['tokens_per_second'][kv]:.0f} ({times[kv]:.2f})" for kv in types)
        lines.append([*(str(row[name]) for name in names), *speeds])
    yield table([*names, *types], lines, left=len(names) - 1)


def drafts(document: Document) -> Iterator[str]:
    """Drafts by kind of text: a row for each."""
    yield filled(_DRAFTS, **document["setup"])
    lines = [[kind, f"{it['mean']:.2f}", f"{it['least']:.2f}"] for kind, it in document["summary"].items()]
    yield table(["text, and how it is chosen", "mean", "least"], lines)


def conversion(document: Document) -> Iterator[str]:
    """Large checkpoints: a row for each command."""
    rows = document["rows"]
    yield filled(_CONVERSION, **document["setting"], size=rows[0]["bytes"] / 1e9)
    lines = []
    for row in rows:
        command = " ".join([row["what"].split()[0], *row["options"]])
        lines.append([command, f"{row['seconds']:.1f}", f"{row['peak_bytes'] / 1e9:.2f}"])
    yield table(["command", "seconds", "GB at most"], lines)


SECTIONS: dict[str, tuple[str, str, Callable[[Document], Iterator[str]]]] = {
    "kernels": ("Kernels", "python bench/kernels.py", kernels),
    "kernels_acceptance": ("What is asked of the kernels", "python bench/kernels.py --acceptance", acceptance),
    "whole_models_zeros": ("Whole models, sparse beside dense", "python bench/whole_models.py zeros", whole_models),
    "whole_models_formats": ("The formats chosen", "python bench/whole_models.py formats", format_choices),
    "whole_models_batch": ("Steps of several tokens", "python bench/whole_models.py batch", batches),
    "whole_models_prompts": ("Prompts", "python bench/whole_models.py prompts", prompts),
    "prompt_peers": ("Prompts beside others", "python bench/prompt_peers.py --help", report_uses.prompt_peers),
    "long_context_depth": ("Long contexts", "python bench/long_context.py depth", depths),
    "long_context_attention": ("Attention", "python bench/long_context.py attention", attention),
    "drafts": ("Drafts", "python bench/drafts.py MODEL", drafts),
    "batch": ("Many texts at once", "python bench/batch.py", report_features.together),
    "grammars": ("Texts held to a schema", "python bench/grammars.py", report_features.grammars),
    "adapters": ("Adapters", "python bench/adapters.py", report_features.adapters),
    "experts": ("Experts", "python bench/experts.py", report_features.experts),
    "conversion": ("Large checkpoints", "python bench/conversion.py WORK", conversion),
    "first_run": ("The first run", "python bench/first_run.py", report_features.first_run),
    "llama_cpp": ("Whole models beside llama.cpp", "python bench/peers.py --help", llama_cpp),
    "serve_load": ("Serving", "python bench/serve_load.py --help", report_uses.serving),
    "ray_load": ("Two replicas on Ray", "python bench/ray_load.py --help", report_uses.ray),
    "capacity_check": ("Replicas, simulated and measured", "python bench/capacity.py --help", report_uses.capacity),
    "transcribe": ("Speech", "python bench/transcribe.py --help", report_uses.speech),
    "vectors": ("Vectors of texts", "python bench/vectors.py", report_uses.vectors),
    "overhead": ("What the engine adds", "python bench/overhead.py --help", overhead),
    "deepsparse": ("Stacks of layers beside DeepSparse", "python bench/stacks.py --help", deepsparse),
    "torch_linear": ("Linear layers in torch", "python bench/torch_linear.py", report_features.torch_linear),
    "torch_generate_smollm2": (
        "A whole model in torch",
        "python bench/torch_generate.py FOLDER --name torch_generate_smollm2",
        report_features.torch_generate,
    ),
    "accuracy": ("Logits beside those of others", "python bench/accuracy.py --help", report_features.accuracy),
}
"""Title, command and paragraphs of every section, by the name of its file; `name-more.json` belongs to it, too."""


def _origin(name: str, result: Document) -> str:
    """The file, where and when it was measured, and what else has to be known of that."""
    facts = result["facts"]
    compiler = f", {facts['compiler']}" if "compiler" in facts else ""
    machine = f"{facts['processor']}, {facts['cores']} cores, {facts['isa']}{compiler}"
    when = f"{facts['date'][:10]}, commit {facts['commit'][:10]}"
    told = f" {result['conditions']}." if "conditions" in result else ""
    return filled(
        "`bench/results/{name}.json`: {machine}; {when}.{told}", name=name, machine=machine, when=when, told=told
    )


def _median(rows: Sequence[Document], key: str) -> float:
    return float(statistics.median(row[key] for row in rows))


def _kinds(side: Document) -> str:
    """Our side in words, as in "50% zeros: bitmap int8, head dense int8"."""
    synthetic = side.get("synthetic")
    name = f"{synthetic['sparsity']:.0%} zeros" if synthetic else side["model"]
    return f"{name}: " + ", ".join(sorted(side["weights"], key=lambda kind: kind.startswith("head ")))


def _span(ratio: Document) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _bandwidth(limit: float | None) -> str:
    return "any" if limit is None else f"{limit:.1f}" if limit else "none"


def main() -> None:
    results = read_results()
    if "kernels" in results and not results["kernels"]["in_cache"]:
        plot(results["kernels"], DOCS / PLOT)
    path = DOCS / "performance.md"
    part = path.with_suffix(".part")
    part.write_text(page(results), encoding="utf-8")
    part.replace(path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
