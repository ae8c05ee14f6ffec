"""What speeds say of bytes: parts of a step by texts, and experts that are chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

import gossamer
from gossamer.checkpoints import open_checkpoint
from gossamer.generation.ready import ready
from gossamer.generation.speeds import measure, weight_bytes_by_part
from gossamer.generation.weight_streams import weight_bytes, weight_bytes_by_stream
from gossamer.packing.convert import pack_checkpoint
from gossamer.pruning import prune
from gossamer.zoo import synthetic
from tiny import tiny_llama


def test_parts_are_all_that_a_token_reads(tmp_path: Path) -> None:
    model = gossamer.load(tiny_llama(tmp_path / "m"), weights="int8")
    parts = weight_bytes_by_part(model)
    assert sum(parts.values()) == weight_bytes(model, ())
    assert set(parts) == {"attn", "mlp", "others"}
    sizes = dict.fromkeys(parts, 0)
    for name, weight in model.weights.items():
        if name == "embed":
            continue  # a row of it
        last = name.rpartition(".")[2]
        sizes["attn" if last in "qkvo" else "mlp" if last in ("gate", "up", "down") else "others"] += weight.nbytes
    assert parts == sizes
    alone, together = measure(model, 0, 2, 1, lambda *_: None, batches=(1, 4))
    shared = {part: size / 4 for part, size in sizes.items()}
    assert together["bytes_by_part"] == pytest.approx({**shared, "KV": alone["bytes_by_part"]["KV"]})
    assert all(model.decoder.length(seq) == 0 for seq in range(4))


@pytest.mark.parametrize(("weights", "format"), [("f32", "dense"), ("int8", "bitmap"), ("int4", "csr"), ("f16", "nm")])
def test_streams_are_all_that_a_token_reads(tmp_path: Path, weights: str, format: str) -> None:
    source = tiny_llama(tmp_path / "m", sparsity=0.0, tie_word_embeddings=format == "csr")
    prune(source, tmp_path / "p", method="magnitude", pattern=(2, 4))
    model = ready(pack_checkpoint(open_checkpoint(tmp_path / "p"), weights=weights, format=format))
    parts = weight_bytes_by_stream(model, ())
    assert sum(parts.values()) == weight_bytes(model, ())
    expected = {"values": 0, "indices": 0, "scales": 0}
    for name, weight in model.weights.items():
        if name != "embed" or format == "csr":  # of one that is no head a token reads a row
            streams = {stream: values.nbytes for stream, values in weight.streams().items()}
            expected["scales"] += streams.pop("scales", 0)
            expected["values"] += streams.pop("values")
            expected["indices"] += sum(streams.values())
    assert set(parts) == {part for part, size in expected.items() if size}
    for part, size in parts.items():
        assert size == pytest.approx(expected[part], abs=64 * len(model.weights))  # spare bytes at the end of a stream
    model.generate("spin", max_new_tokens=2)
    assert model.last_stats is not None
    assert model.last_stats.to_dict()["weight_streams"] == parts
    said = " MB weights (" if len(parts) > 1 else " MB weights +"
    assert said in model.last_stats.text()


def test_more_texts_read_more_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**synthetic.CONFIGS["smollm2-135m"], "num_hidden_layers": 1, "vocab_size": 64}
    config |= {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 64}
    monkeypatch.setitem(synthetic.CONFIGS, "experts", config)
    model = ready(synthetic.pack("experts", weights="int8", format="dense", sparsity=0.0))
    one, four = weight_bytes_by_part(model), weight_bytes_by_part(model, 4)
    assert sum(one.values()) == pytest.approx(model.decoder.weight_bytes, abs=1)
    experts = sum(weight.nbytes for name, weight in model.weights.items() if ".experts." in name)
    router = model.weights["layers.0.router"].nbytes
    assert one["mlp"] - router == pytest.approx(experts / 4)
    assert four["mlp"] - router == pytest.approx(experts * (1 - 0.75**4))
    assert four["attn"] == one["attn"]
    streams = weight_bytes_by_stream(model, ())
    assert sum(streams.values()) == pytest.approx(model.decoder.weight_bytes)
    scales = {name: weight.streams()["scales"].nbytes for name, weight in model.weights.items() if "router" not in name}
    routed = sum(size for name, size in scales.items() if ".experts." in name)
    assert streams["scales"] == pytest.approx(sum(scales.values()) - 0.75 * routed)
