"""Checks a GGUF model's logits against transformers and llama.cpp, and between our formats.

    python bench/accuracy.py --gguf FILE --text FILE [--llama-python PATH] [--name NAME]

transformers runs the same dequantized weights in float32. llama.cpp reads the GGUF itself, in an environment of its
own (a Python with llama-cpp-python); where weights are quantized it rounds activations to 8 bits, so its logits differ
more. --llama-gguf takes the same model as F32 (made with llama.cpp's quantizer), which shows how near the two engines
are without that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

from gossamer import _core, load
from gossamer.arch import family
from gossamer.checkpoints import Checkpoint, open_checkpoint

PROMPTS = (
    "What is the capital of France?",
    "Explain how a bridge carries weight.",
    "Write a short story about a spider.",
    "List three uses of iron.",
    "Why is the sky blue?",
)

_LLAMA = """
import sys
import numpy as np
from llama_cpp import Llama
data = np.load(sys.argv[2])
model = Llama(sys.argv[1], n_ctx=1024, n_threads=2, logits_all=True, verbose=False)
out = {}
for key in data.files:
    model.reset()
    model.eval([int(t) for t in data[key]])
    out[key] = np.array(model.scores[: len(data[key])], dtype=np.float32)
np.savez(sys.argv[3], **out)
"""


def transformers_logits(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    """Float32 logits [tokens, vocab] of transformers on the dequantized weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{k: v for k, v in checkpoint.config.items() if k not in ("architectures", "torch_dtype")})
    model = LlamaForCausalLM(config).eval()
    state = {name: torch.from_numpy(checkpoint.tensor(name).copy()) for name in checkpoint.names()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        sys.exit(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0].float().numpy())


def format_logits(checkpoint: Checkpoint, ids: list[int], type: str) -> dict[str, float]:
    """Largest difference from dense of the same stored values in every format, float activations, 2:4 weights."""
    chosen = family(checkpoint.config)
    config = chosen.describe(checkpoint.config)
    results: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    vectors: dict[str, np.ndarray] = {}
    for name, source in chosen.sources(checkpoint.config).items():
        tensor = checkpoint.read(source)
        shape = tensor.shape
        if len(shape) == 1:
            vectors[name] = tensor
            continue
        if name not in ("embed", "head"):  # the two largest of every four inputs
            groups = tensor.reshape(shape[0], -1, 4).copy()
            np.put_along_axis(groups, np.argsort(-np.abs(groups), axis=2)[:, :, 2:], 0, axis=2)
            tensor = groups.reshape(shape)
        values[name] = tensor
    for form in ("dense", "bitmap", "csr", "nm"):
        weights = {}
        for name, tensor in values.items():
            used = "dense" if name in ("embed", "head") else form
            weights[name] = _core.pack(tensor, used, type, 64, (2, 4) if used == "nm" else None)
        decoder = _core.Decoder(config.to_dict(), weights, vectors, activations="f32", kv="f32")
        results[form] = decoder.step([(0, ids)], all_logits=True)
    return {form: float(np.abs(logits - results["dense"]).max()) for form, logits in results.items()}


def against_llama_cpp(gguf: str, theirs_gguf: str, python: str) -> dict[str, Any]:
    """Teacher-forced comparison over 64 greedy tokens after each prompt."""
    model = load(gguf, activations="f32")
    sequences, ours = {}, {}
    for i, prompt in enumerate(PROMPTS):
        ids = model.tokenizer.chat([{"role": "user", "content": prompt}])
        sequence = 1_000_000 + i  # far from the model's own
        logits = model.decoder.step([(sequence, ids)])
        for _ in range(64):
            ids.append(int(logits[-1].argmax()))
            logits = model.decoder.step([(sequence, ids[-1:])])
        sequences[str(i)] = np.array(ids)
        ours[str(i)] = model.logits(ids)[-65:-1]  # what predicts each of the 64
    with tempfile.TemporaryDirectory() as folder:
        given, answer, script = (str(Path(folder) / name) for name in ("ids.npz", "logits.npz", "run.py"))
        np.savez(given, allow_pickle=False, **sequences)
        Path(script).write_text(_LLAMA, encoding="utf-8")
        subprocess.run([python, script, theirs_gguf, given, answer], check=True, stdout=subprocess.DEVNULL)
        theirs = {key: values[-65:-1] for key, values in np.load(answer).items()}
    a, b = (np.concatenate([logits[key] for key in sequences]) for logits in (ours, theirs))
    difference = np.abs(a - b).max(axis=1)
    top = np.sort(a, axis=1)
    clear = top[:, -1] - top[:, -2] > 2 * difference.max()
    clear_here = top[:, -1] - top[:, -2] > 2 * difference
    same = a.argmax(axis=1) == b.argmax(axis=1)
    return {
        "positions": len(a),
        "largest_difference": float(difference.max()),
        "median_difference": float(np.median(difference)),
        "clear_of_the_largest_difference": int(clear.sum()),
        "same_there": int(same[clear].sum()),
        "clear_of_their_own_difference": int(clear_here.sum()),
        "same_where_clear": int(same[clear_here].sum()),
        "same_anywhere": int(same.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--text", required=True, help="its first 256 tokens are used")
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python")
    parser.add_argument("--llama-gguf", help="another file of the same weights for llama.cpp")
    parser.add_argument("--name", default="accuracy", help="of the results file")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.gguf)
    ids = load(args.gguf).tokenizer.encode(Path(args.text).read_text(encoding="utf-8")[:4000])[:256]
    expected = transformers_logits(checkpoint, ids)
    report: dict[str, Any] = {"model": Path(args.gguf).name, "tokens": len(ids)}
    for kv in ("f32", "f16"):
        logits = load(args.gguf, kv=kv, activations="f32").logits(ids)
        report[f"transformers_{kv}_kv"] = float(np.abs(logits - expected).max())
    for type in ("f32", "int8", "int4"):
        report[f"formats_{type}"] = format_logits(checkpoint, ids, type)
    if args.llama_python:
        report["llama_cpp"] = against_llama_cpp(args.gguf, args.gguf, args.llama_python)
        if args.llama_gguf:
            report["llama_cpp_other_file"] = against_llama_cpp(args.gguf, args.llama_gguf, args.llama_python)
    write_result(args.name, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
