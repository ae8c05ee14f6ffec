"""llama.cpp's side of `peers.py`: runs inside an environment that has llama-cpp-python, and prints one JSON document.

Its arguments:
    quantize SOURCE.gguf TYPE TARGET.gguf
    bench FILE.gguf THREADS PROMPT NEW REPEATS
    perplexity FILE.gguf THREADS TEXT CONTEXT WINDOWS
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

START = 8  # tokens before decoding is timed, as in `gossamer bench`


def quantize(source: str, name: str, target: str) -> dict[str, Any]:
    """Writes `source` again with the values of the type `name`, as Q8_0."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"cannot quantize {source} to {name}")
    return {"bytes": Path(target).stat().st_size}


def bench(path: str, threads: str, prompt: str, new: str, repeats: str) -> dict[str, Any]:
    """Times prefill and decode with the tokens and the order of `gossamer bench`; tokens a second of every run.

    A PROMPT or NEW of 0 skips its test.
    """
    pp, tg = int(prompt), int(new)
    model = _open(path, int(threads), pp + tg + 64)
    tokens = [100 + i % 1000 for i in range(max(pp, tg, START))]
    prefills, decodes = [], []
    for _ in range(int(repeats) + 1):
        if pp:
            model.reset()
            start = time.perf_counter()
            model.eval(tokens[:pp])
            prefills.append(pp / (time.perf_counter() - start))
        if tg:
            model.reset()
            model.eval(tokens[:START])
            start = time.perf_counter()
            for token in tokens[:tg]:
                model.eval([token])
            decodes.append(tg / (time.perf_counter() - start))
    # The first of each warms up.
    return {f"pp{pp}": prefills[1:], f"tg{tg}": decodes[1:], "bytes": Path(path).stat().st_size}


def perplexity(path: str, threads: str, text: str, context: str, windows: str) -> dict[str, Any]:
    """Perplexity over windows that do not overlap, each from an empty context, as `gossamer eval` takes it."""
    size = int(context)
    model = _open(path, int(threads), size, logits_all=True)
    tokens = model.tokenize(Path(text).read_bytes(), add_bos=False)
    starts = range(0, len(tokens) - 1, size)[: int(windows) or None]
    loss, count = 0.0, 0
    for start in starts:
        window = tokens[start : start + size]
        model.reset()
        model.eval(window)
        logits = np.asarray(model.scores[: len(window) - 1], np.float64)
        top = logits.max(axis=1)
        chosen = logits[np.arange(len(window) - 1), window[1:]]
        loss += float((np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - chosen).sum())
        count += len(window) - 1
    return {"perplexity": math.exp(loss / count), "tokens": count, "windows": len(starts)}


def _open(path: str, threads: int, context: int, *, logits_all: bool = False) -> Any:
    return llama_cpp.Llama(
        path,
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        n_batch=512,
        logits_all=logits_all,
        verbose=False,
    )


if __name__ == "__main__":
    command = {"quantize": quantize, "bench": bench, "perplexity": perplexity}[sys.argv[1]]
    print(json.dumps({**command(*sys.argv[2:]), "llama_cpp_python": llama_cpp.__version__}))
