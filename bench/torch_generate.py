"""A whole language model in torch: `generate()` of transformers with packed layers beside dense ones, in turns.

    python bench/torch_generate.py                        SmolLM2-135M's shape, random weights, half of them zero
    python bench/torch_generate.py FOLDER --weights auto int8

The dense side is the same pruned model in float32. A row's ratio is the packed model's tokens a second over the dense
one's. Random weights take as long as real ones; tokens are compared only to see that both sides run the same model.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from typing import Any

import torch
import transformers
from common import write_result
from torch import nn

import gossamer.torch as gt
from gossamer.zoo import synthetic


def random_model(name: str, zeros: float) -> nn.Module:
    """A model of a named shape whose blocks' linear layers are zero at random places."""
    torch.manual_seed(0)
    config = {
        key: value for key, value in synthetic.config(name).items() if key not in ("architectures", "torch_dtype")
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.weight[torch.rand_like(layer.weight) < zeros] = 0
    return model


def seconds_a_token(model: nn.Module, prompt: torch.Tensor, tokens: int) -> tuple[float, list[int]]:
    """Decodes greedily; the prompt's time is taken off by a call that stops after its first token."""
    mask = torch.ones_like(prompt)
    times = []
    for count in (1, 1 + tokens):
        start = time.perf_counter()
        out = model.generate(prompt, attention_mask=mask, min_new_tokens=count, max_new_tokens=count, do_sample=False)
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / tokens, out[0, prompt.shape[1] :].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a pruned checkpoint; else random weights of --shape")
    parser.add_argument("--shape", default="smollm2-135m", choices=list(synthetic.CONFIGS))
    parser.add_argument("--zeros", type=float, default=0.5, help="of random weights (%(default)s)")
    parser.add_argument("--weights", nargs="+", default=["auto", "int8"], help="of the packed sides (auto int8)")
    parser.add_argument("-n", type=int, default=24, help="tokens a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("--name", default="torch_generate", help="of the file in results/ (%(default)s)")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    if args.model:
        dense: Any = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    else:
        dense = random_model(args.shape, args.zeros)
    dense.eval().generation_config.pad_token_id = 0
    sides = {"dense": dense}
    packed = {}
    for weights in args.weights:
        sides[weights] = copy.deepcopy(dense)
        report = gt.sparsify(sides[weights], weights=weights)
        packed[weights] = {"packed": len(report.packed), "layers": len(report)}
    prompt = torch.arange(1, 17)[None]
    times: dict[str, list[float]] = {name: [] for name in sides}
    same: dict[str, int] = {}
    for turn in range(args.rounds + 1):
        written = {}
        for name, model in sides.items():
            seconds, written[name] = seconds_a_token(model, prompt, args.n)
            if turn:  # the first warms up
                times[name].append(seconds)
        pairs = {name: zip(written["dense"], tokens, strict=True) for name, tokens in written.items()}
        same = {name: sum(a == b for a, b in both) for name, both in pairs.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        {
            "weights": name,
            **packed[name],
            "ratio": medians["dense"] / medians[name],
            "tokens_per_second": 1 / medians[name],
            "spread_seconds": [min(times[name]), max(times[name])],
            "equal_tokens": [same[name], args.n + 1],
        }
        for name in packed
    ]
    for row in rows:
        print(
            f"{row['weights']:5} {row['ratio']:5.2f} x  {row['tokens_per_second']:6.1f} tokens/s, {row['equal_tokens']}"
        )
    print(f"dense          {1 / medians['dense']:6.1f} tokens/s")
    result = {
        "model": "a pruned checkpoint" if args.model else f"{args.shape}, random, {args.zeros:.0%} zeros",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "tokens": args.n,
        "rounds": args.rounds,
        "dense_tokens_per_second": 1 / medians["dense"],
        "dense_spread_seconds": [min(times["dense"]), max(times["dense"])],
        "rows": rows,
    }
    print(f"written: {write_result(args.name, result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
