"""What the report says of the weights that no linear layer has."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from gossamer.torch import sparsify  # noqa: E402
from torch_layers import pruned  # noqa: E402


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 64, 128))
        self.down_proj = nn.Parameter(torch.randn(4, 128, 32))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 256)
        self.conv = nn.Conv2d(3, 8, 3)
        self.attention = nn.MultiheadAttention(64, 4)
        self.proj = pruned(256, 256, 0.6, bias=False)
        self.experts = Experts()
        self.places = nn.Parameter(torch.zeros(7, 64))
        self.head = nn.Linear(256, 300, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(16, 16))


def test_weights_that_no_linear_layer_has_are_told_with_their_bytes() -> None:
    model = Model()
    floats = sum(parameter.numel() for parameter in model.parameters()) + 256
    report = sparsify(model)
    assert {other.name: other.kind for other in report.others} == {
        "conv.weight": "convolutions",
        "attention.in_proj_weight": "attention projections",
        "experts.gate_up_proj": "stacked experts",
        "experts.down_proj": "stacked experts",
        "places": "other weights",
    }
    sizes = {other.name: (other.shape, other.bytes) for other in report.others}
    assert sizes["experts.gate_up_proj"] == ((4, 64, 128), 4 * 4 * 64 * 128)
    proj = next(layer for layer in report if layer.name == "proj")
    assert report.model_dense_bytes == 4 * floats
    streams = model.proj.layout_numbers.numel() * 8
    assert report.model_bytes == report.model_dense_bytes - proj.dense_bytes + proj.bytes + streams
    text = str(report)
    assert "1 of 3 linear layers packed" in text
    assert "left alone, since no linear layer has them: 248,416 bytes in 5 tensors: stacked experts (196,608" in text
    assert f"whole model: {4 * floats:,} bytes before, {report.model_bytes:,} now" in text


def test_embeddings_are_told_where_nothing_is_tied_to_them() -> None:
    report = sparsify(nn.Sequential(nn.Embedding(50, 40), pruned(256, 256)))
    assert [(other.name, other.kind, other.bytes) for other in report.others] == [("0.weight", "embeddings", 8000)]


def test_a_second_pass_counts_what_is_packed_already() -> None:
    model = nn.Sequential(pruned(256, 256))
    first, second = sparsify(model, trainable=True), sparsify(model)
    assert len(second) == 0
    assert second.others == ()
    assert second.model_dense_bytes == second.model_bytes == first.model_bytes


def test_experts_of_transformers_are_told() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    for family, more in (
        ("Mixtral", {"num_local_experts": 4}),
        ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 48, "decoder_sparse_step": 1}),
        ("GptOss", {"num_local_experts": 4, "head_dim": 16}),
        ("GraniteMoe", {"num_local_experts": 4}),
    ):
        config = getattr(transformers, f"{family}Config")(vocab_size=99, num_key_value_heads=2, **sizes, **more)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        report = sparsify(model, weights="int8")
        experts = [other for other in report.others if other.kind == "stacked experts"]
        own = sum(p.numel() for name, p in model.named_parameters() if "expert" in name and p.dim() >= 2)
        assert sum(other.bytes for other in experts) == 4 * own > 0, family
        assert "stacked experts" in str(report)
