"""Translation: T5 translates with packed weights.

    python examples/translation.py google-t5/t5-small
    python examples/translation.py --tiny

T5 is pruned on the sentences themselves and what the dense model makes of them; name a pruned one with --sparsity 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from side_by_side import before_and_after, options
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

import gossamer.torch as gt

SENTENCES = (
    "The spider spins a thread.",
    "The house is old, but the garden is new.",
    "We will meet at the station tomorrow morning.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the example."""
    parser = options(__doc__, None)
    parser.add_argument("--task", default="translate English to German", help="(%(default)s)")
    parser.add_argument("-n", type=int, default=32, help="most tokens to write for a sentence (%(default)s)")
    args = parser.parse_args(arguments)
    if not (args.model or args.tiny):
        parser.error("name a folder or a hub id of a T5, or give --tiny")

    if args.tiny:
        torch.manual_seed(0)
        sizes = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(vocab_size=256, decoder_start_token_id=0, **sizes)).eval()
        batch = {"input_ids": torch.randint(2, 256, (3, 12)), "attention_mask": torch.ones(3, 12, dtype=torch.long)}
    else:
        model = T5ForConditionalGeneration.from_pretrained(args.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        batch = tokenizer([f"{args.task}: {text}" for text in SENTENCES], padding=True, return_tensors="pt")

    def translate() -> torch.Tensor:
        return model.generate(**batch, max_new_tokens=args.n, do_sample=False)

    if args.sparsity:
        calibration = {**batch, "decoder_input_ids": translate()}
        gt.prune_linears(model, [calibration], sparsity=args.sparsity)
    for kind, tokens in zip(("dense", "sparsified"), before_and_after(model, translate, args), strict=True):
        lines = tokens.tolist() if args.tiny else tokenizer.batch_decode(tokens, skip_special_tokens=True)
        print(f"\n{kind}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
