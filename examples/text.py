"""Text: a pruned language model writes with packed weights.

    python examples/text.py
    python examples/text.py FOLDER_OR_HUB_ID --prompt "Why is the sky blue?"

By default SmolLM2-135M-Instruct, which the first run fetches and prunes in some minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from side_by_side import before_and_after, options
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import gossamer
import gossamer.torch as gt
from gossamer.zoo import builtin


def smollm2(sparsity: float) -> Path:
    """Returns the folder of SmolLM2-135M-Instruct with that share of zeros in its blocks, made on first use."""
    folder = builtin.home() / "examples" / f"smollm2-135m-instruct-{100 * sparsity:.0f}"
    if not folder.is_dir():
        source = builtin.source("smollm2-135m-instruct")
        print(f"pruning into {folder}, which takes some minutes")
        gossamer.prune(source, folder, sparsity=sparsity)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the example."""
    parser = options(__doc__, "SmolLM2-135M-Instruct")
    parser.add_argument("--prompt", default="What is the capital of France?", help="(%(default)s)")
    parser.add_argument("-n", type=int, default=48, help="tokens to write (%(default)s)")
    args = parser.parse_args(arguments)

    if args.tiny:
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **sizes)).eval()
        gt.prune_linears(model, sparsity=args.sparsity, method="magnitude")
        prompt = {"input_ids": torch.tensor([list(args.prompt.encode())])}
    else:
        folder = args.model or smollm2(args.sparsity)  # a model that is named has its zeros already
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": args.prompt}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    start = prompt["input_ids"].shape[1]

    def write() -> list[int]:
        return model.generate(**prompt, max_new_tokens=args.n, do_sample=False)[0, start:].tolist()

    for kind, tokens in zip(("dense", "sparsified"), before_and_after(model, write, args), strict=True):
        print(f"\n{kind}\n  {tokens if args.tiny else tokenizer.decode(tokens, skip_special_tokens=True)}")


if __name__ == "__main__":
    main()
