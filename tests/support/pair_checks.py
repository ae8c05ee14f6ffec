"""What every family with an encoder and a decoder has to do, as checks of tiny seeded models of transformers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import gossamer
import whispers
from family_checks import VOCAB, Config, near, read
from gossamer.pruning import prune
from reference_model import ReferenceModel
from tiny import EOS_ID, save_tokenizer

START = 3


def made_pair(folder: Path, config: Config, *, encoder: bool = False) -> Path:
    """Writes a seeded model, all of its parameters moved from what they began with; or its encoder alone."""
    torch.manual_seed(0)
    values = {"eos_token_id": EOS_ID, "pad_token_id": 1, "decoder_start_token_id": START, **config}
    settings = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    speech = settings.model_type == "whisper"
    auto = transformers.AutoModelForSpeechSeq2Seq if speech else transformers.AutoModelForSeq2SeqLM
    model = transformers.T5EncoderModel._from_config(settings) if encoder else auto.from_config(settings)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def made_whisper(folder: Path) -> Path:
    """Writes a tiny Whisper that hears 30 seconds, with a tokenizer that has a token a byte."""
    sizes = {
        f"{side}_{key}": size
        for side in ("encoder", "decoder")
        for key, size in (("layers", 1), ("attention_heads", 1), ("ffn_dim", 16))
    }
    config = {"model_type": "whisper", "vocab_size": whispers.VOCAB, "d_model": 8, "num_mel_bins": 8, **sizes}
    config |= {"max_source_positions": 1500, "max_target_positions": 40, "begin_suppress_tokens": None}
    made_pair(folder, {**config, "bos_token_id": 0})
    (folder / "tokenizer.json").write_text(whispers.backend().to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}', encoding="utf-8")
    return folder


def pair() -> tuple[Any, Any]:
    """Token ids of an input, and of a text about it."""
    random = np.random.default_rng(0)
    return random.integers(4, VOCAB, 33), random.integers(4, VOCAB, 21)


def theirs(folder: Path, source: Any, ids: Any) -> tuple[Any, Any]:
    """Encoder states and logits of transformers in float64."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").double().eval()
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(source)[None], decoder_input_ids=torch.from_numpy(ids)[None], use_cache=False
        )
    return found.encoder_last_hidden_state[0].numpy(), found.logits[0].numpy()


def check_pair(folder: Path) -> None:
    """The description has the states and the logits of transformers, by the float64 reference."""
    described, values = read(folder)
    assert {name: value.shape for name, value in values.items()} == described.tensors
    source, ids = pair()
    states, logits = theirs(folder, source, ids)
    reference = ReferenceModel(described, values)
    # T5's norms take squares in float32 whatever the model's type is, and its scores are not scaled.
    near(reference.encode(source), states, 5e-6)
    near(reference.logits(ids, reference.encode(source)), logits, 5e-6)


def check_pair_runs(folder: Path) -> None:
    """The engine has them, in several cuts and beside others."""
    model = gossamer.load(folder, activations="f32")
    source, ids = pair()
    states, logits = theirs(folder, source, ids)
    near(model.decoder.encode([source]), states, 5e-5)  # type: ignore[attr-defined]
    near(model.logits(ids, reads=source), logits, 5e-5)
    model.decoder.remember([(10**6, source), (10**6 + 1, source[:7])])  # type: ignore[attr-defined]
    found = []
    for at in range(len(ids)):
        batch = [(10**6, ids[at : at + 1]), (10**6 + 1, ids[at : at + 1])]
        found.append(model.decoder.step(batch)[:1])
    near(np.concatenate(found), logits, 5e-5)


def check_pair_writes(folder: Path) -> None:
    """Greedy texts are those of transformers."""
    model = gossamer.load(folder, activations="f32")
    text = "The spider spins a thread"
    other = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    source = torch.tensor([model.tokenizer.encode(text)])
    with torch.no_grad():
        # No last token is forced; its caches are for sides of equally many blocks.
        options = {"num_beams": 1, "do_sample": False, "forced_eos_token_id": None, "use_cache": False}
        ids = other.generate(source, max_new_tokens=12, **options)[0].tolist()
    start = model.tokenizer.starts()
    assert ids[: len(start)] == start
    (found,) = model.completions(text, max_new_tokens=12)
    written = ids[len(start) :]
    assert list(found.tokens)[: len(written)] == written
    assert model.generate(text, max_new_tokens=12) == found.text
    assert model.generate_batch([text, "Numbers", text], max_new_tokens=12)[::2] == [found.text] * 2
    other.generation_config.max_length = model.tokenizer.generation["max_length"] = 8  # of the decoder alone
    with torch.no_grad():
        shorter = other.generate(source, **options)[0].tolist()
    (found,) = model.completions(text)
    assert len(shorter) <= 8 < len(ids)
    assert list(found.tokens)[: len(shorter) - len(start)] == shorter[len(start) :]
    assert len(found.tokens) + len(start) <= 8


def check_pair_beams(folder: Path) -> None:
    """Texts of four beams are those of transformers, where no other is as likely."""
    model = gossamer.load(folder, activations="f32")
    model.tokenizer.generation["bad_words_ids"] = [[1], [7, 9]]
    other = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    start, compared = model.tokenizer.starts(), 0
    asked = itertools.product(
        ("The spider spins a thread", "Numbers", "the net is thin and quick"), ((0.0, False), (1.0, True), (2.0, False))
    )
    for text, (penalty, again) in asked:
        source = torch.tensor([model.tokenizer.encode(text)])
        with torch.no_grad():
            found = other.generate(
                source, num_beams=4, num_return_sequences=4, do_sample=False, max_new_tokens=9 + len(start) - 1,
                length_penalty=penalty, early_stopping=False, bad_words_ids=[[1], [7, 9]], forced_eos_token_id=None,
                renormalize_logits=again, repetition_penalty=1.2, return_dict_in_generate=True, output_scores=True,
                use_cache=False,
            )  # fmt: skip
        model.tokenizer.generation["renormalize_logits"] = again
        options = {"repeat_penalty": 1.2, "repeat_window": 0, "length_penalty": penalty}
        ours = model.completions(text, 4, beams=4, max_new_tokens=9, **options)
        scores = found.sequences_scores.tolist()
        for rank, (one, row) in enumerate(zip(ours, found.sequences.tolist(), strict=True)):
            if sum(abs(scores[rank] - score) < 1e-3 for score in scores) > 1:
                continue
            assert row[: len(start)] == start
            written = row[len(start) :]
            end = written.index(EOS_ID) + 1 if EOS_ID in written else len(written)
            assert list(one.tokens)[:end] == written[:end]
            compared += 1
    assert compared > 9


def check_pair_pruned_packed_and_run(folder: Path, work: Path) -> None:
    """Both sides are pruned, and what is packed is what transformers has."""
    pairs = [{"source": "The spider " * at, "target": "spins a thread " * at} for at in (1, 2, 3)]
    (work / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    report = prune(folder, work / "pruned", method="sparsegpt", sparsity=0.5, calibration=work / "pairs.jsonl")
    assert abs(report.reached - 0.5) < 0.02
    gossamer.convert(work / "pruned", work / "packed", weights="f32")
    model = gossamer.load(work / "packed", activations="f32")
    source, ids = pair()
    states, logits = theirs(work / "pruned", source, ids)
    near(model.decoder.encode([source]), states, 5e-5)  # type: ignore[attr-defined]
    near(model.logits(ids, reads=source), logits, 5e-5)
    assert isinstance(model.generate("The spider", max_new_tokens=5), str)


def check_pair_pruned_go_back(folder: Path, work: Path) -> None:
    prune(folder, work / "magnitude", method="magnitude", sparsity=0.5)
    described, values = read(work / "magnitude")
    assert all(0.46 < (values[name] == 0).mean() < 0.54 for name in described.linears)
    source, ids = pair()
    states, logits = theirs(work / "magnitude", source, ids)
    reference = ReferenceModel(described, values)
    near(reference.encode(source), states, 5e-6)
    near(reference.logits(ids, reference.encode(source)), logits, 5e-6)
