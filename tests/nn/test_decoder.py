"""The torch decoder against the native engine and transformers, and the checkpoints that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.checkpoints import open_checkpoint
from gossamer.errors import GossamerError
from tiny import save_tokenizer, tiny_llama

torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
from gossamer.nn import decoder as torch_decoder  # noqa: E402
from tiny import CASES, tokens  # noqa: E402


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_native_engine_and_of_transformers(tmp_path: Path, case: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the other side")
    path = tiny_llama(tmp_path / "model", sparsity=0.5, **CASES[case])
    ids = tokens()
    batch = torch.from_numpy(ids)[None].long()
    with torch.no_grad():
        ours = torch_decoder.load(path)(batch)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path)(batch, output_hidden_states=True)
    np.testing.assert_allclose(ours.logits[0], theirs.logits[0], rtol=0, atol=5e-4)
    native = gossamer.load(path, activations="f32").logits(ids)
    np.testing.assert_allclose(ours.logits[0], native, rtol=0, atol=5e-4)
    # transformers lists the embedding first, and the last one only after the final norm.
    assert len(ours.hidden) == 2
    np.testing.assert_allclose(ours.hidden[0], theirs.hidden_states[1], rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 320},
        {"model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 100, "vocab_size": 320, "max_position_embeddings": 64},
    ],
    ids=["gpt2", "gpt_neox"],
)  # fmt: skip
def test_other_families_come_and_go(tmp_path: Path, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="the other side")
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    source, batch = open_checkpoint(tmp_path / "model"), torch.from_numpy(tokens(40))[None].long()
    ours = torch_decoder.load(source)
    with torch.no_grad():
        np.testing.assert_allclose(ours(batch).logits, theirs(batch).logits, rtol=0, atol=1e-5)
    torch_decoder.save(ours, tmp_path / "written", source)
    written = open_checkpoint(tmp_path / "written")
    assert sorted(written.names()) == sorted(source.names())
    for name in source.names():
        np.testing.assert_array_equal(written.tensor(name), source.tensor(name))


def test_padding_at_the_end_changes_nothing_before_it(tmp_path: Path) -> None:
    model = torch_decoder.load(tiny_llama(tmp_path / "model"))
    ids = torch.from_numpy(tokens()).long()
    padded = torch.stack([ids, torch.cat([ids[:40], torch.full((20,), 7)])])
    with torch.no_grad():
        together, alone = model(padded), model(ids[None, :40])
    torch.testing.assert_close(together.logits[1, :40], alone.logits[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.hidden[1][1, :40], alone.hidden[1][0], rtol=0, atol=1e-5)


def test_recomputed_blocks_give_the_same_gradients(tmp_path: Path) -> None:
    batch = torch.from_numpy(tokens()).long()[None]
    gradients = []
    for recompute in (False, True):
        model = torch_decoder.load(tiny_llama(tmp_path / "model"))
        model(batch, recompute_blocks=recompute).logits.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_is_what_was_read(tmp_path: Path, dtype: str, tied: bool) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "model", dtype=dtype, sparsity=0.5, tie_word_embeddings=tied))
    torch_decoder.save(torch_decoder.load(source), tmp_path / "written", source)
    written = open_checkpoint(tmp_path / "written")
    assert sorted(written.names()) == sorted(source.names())
    for name in source.names():
        assert written.dtype(name) == dtype
        np.testing.assert_array_equal(written.tensor(name), source.tensor(name))
    assert written.tokenizer().encode("The net") == source.tokenizer().encode("The net")


def test_changed_weights_are_written_under_their_own_names(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "model", attention_bias=True))
    model = torch_decoder.load(source)
    with torch.no_grad():
        model.layers[1].q.bias += 1.0
    torch_decoder.save(model, tmp_path / "written", source, "bf16")
    written = open_checkpoint(tmp_path / "written")
    changed = "model.layers.1.self_attn.q_proj.bias"
    assert written.dtype(changed) == "bf16"
    np.testing.assert_allclose(written.tensor(changed), source.tensor(changed) + 1, rtol=2**-8)


def test_values_beyond_f16_leave_nothing_behind(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama(tmp_path / "model", dtype="f16"))
    model = torch_decoder.load(source)
    with torch.no_grad():
        model.layers[0].up.weight[3, 4] = 1e5
    with pytest.raises(GossamerError, match=r"model\.layers\.0\.mlp\.up_proj\.weight does not fit f16"):
        torch_decoder.save(model, tmp_path / "written", source)
    assert not (tmp_path / "written").exists()
