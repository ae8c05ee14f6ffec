"""Vision: a ViT classifies images with packed weights.

    python examples/vision.py google/vit-base-patch16-224 --image cat.jpg dog.jpg
    python examples/vision.py --tiny

The model is pruned on the images themselves; name a pruned one with --sparsity 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from side_by_side import before_and_after, options
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification

import gossamer.torch as gt


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the example."""
    parser = options(__doc__, None)
    parser.add_argument("--image", nargs="+", help="files to classify")
    args = parser.parse_args(arguments)
    if not args.tiny and not (args.model and args.image):
        parser.error("name a folder or a hub id of a ViT and an --image, or give --tiny")

    if args.tiny:
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=5, **sizes)).eval()
        pixels = torch.randn(2, 3, 32, 32)
    else:
        from PIL import Image

        model = ViTForImageClassification.from_pretrained(args.model).eval()
        processor = AutoImageProcessor.from_pretrained(args.model)
        images = [Image.open(path).convert("RGB") for path in args.image]
        pixels = processor(images=images, return_tensors="pt").pixel_values

    def classify() -> torch.Tensor:
        with torch.no_grad():
            return model(pixel_values=pixels).logits.softmax(-1)

    if args.sparsity:
        gt.prune_linears(model, [{"pixel_values": pixels}], sparsity=args.sparsity)
    for kind, chances in zip(("dense", "sparsified"), before_and_after(model, classify, args), strict=True):
        print(f"\n{kind}")
        for row in chances:
            best = row.topk(3)
            labels = (model.config.id2label[index] for index in best.indices.tolist())
            print(
                "  "
                + ", ".join(f"{name} {share:.3f}" for name, share in zip(labels, best.values.tolist(), strict=True))
            )


if __name__ == "__main__":
    main()
