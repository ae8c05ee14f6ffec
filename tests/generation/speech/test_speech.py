"""`Model.transcribe` on a tiny seeded Whisper: as the engine runs it, and as a folder of CTranslate2 has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from adapter_files import factors, write_lora
from gossamer.errors import GossamerError
from gossamer.generation.speech import transcriber
from tiny import tiny_llama
from whispers import END, VOCAB, backend, token

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
LAYERS, HEADS, WIDTH = 2, 2, 32


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("whisper")
    config = transformers.WhisperConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_target_positions=64,
        init_std=0.4,
        decoder_start_token_id=token("startoftranscript"),
        eos_token_id=END,
        bos_token_id=END,
        pad_token_id=END,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": [[0, 1], [1, 0]]}))
    backend().save(str(folder / "tokenizer.json"))
    return folder


def sound(seconds: float) -> Any:
    return np.random.default_rng(1).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


def options(**more: Any) -> dict[str, Any]:
    """A model of random weights is unsure and repeats itself: one try."""
    return {"language": "en", "beams": 2, "temperatures": (0.0,), "no_speech": 1.0, **more}


def test_a_packed_model_says_what_the_checkpoint_says(tmp_path: Path, whisper: Path) -> None:
    gossamer.convert(whisper, tmp_path / "packed", weights="f32")
    one, other = (
        gossamer.load(path, activations="f32").transcribe(sound(3), **options())
        for path in (whisper, tmp_path / "packed")
    )
    assert one.segments
    assert one.segments == other.segments
    assert one.text == other.text
    assert one.heard.seconds == 3


def test_words_look_at_what_transformers_looks_at(whisper: Path) -> None:
    model = gossamer.load(whisper, activations="f32")
    look: Any = transcriber(model, words=True)._look
    features = np.random.default_rng(2).normal(0, 1, (80, 3000)).astype(np.float32)
    ids = [token("startoftranscript"), token("en"), token("transcribe"), 40, 41, 42, END]
    scores, chances = look(features, ids)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(whisper, attn_implementation="eager").eval()
    with torch.no_grad():
        made = theirs(torch.from_numpy(features)[None], decoder_input_ids=torch.tensor([ids]), output_attentions=True)
    expected = torch.stack([made.cross_attentions[0][0, 1], made.cross_attentions[1][0, 0]]).numpy()
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(shares / shares.sum(-1, keepdims=True), expected, rtol=0, atol=1e-5)
    likely = made.logits[0].softmax(-1).numpy()[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(chances, likely, rtol=1e-3, atol=1e-6)


def test_words_lie_within_the_sound(whisper: Path) -> None:
    found = gossamer.load(whisper, activations="f32").transcribe(sound(4), **options(words=True))
    words = [word for segment in found.segments for word in segment.words]
    assert words
    assert all(0 <= word.start <= word.end for word in words)


def test_what_is_no_speech_model_is_one_line(tmp_path: Path) -> None:
    model = gossamer.load(tiny_llama(tmp_path / "m"))
    with pytest.raises(GossamerError, match="is no speech model"):
        model.transcribe(sound(1))


def test_heads_that_are_not_there_are_one_line(tmp_path: Path, whisper: Path) -> None:
    for path in whisper.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"alignment_heads": [[0, HEADS]]}))
    with pytest.raises(GossamerError, match="no head 2 of layer 0"):
        gossamer.load(tmp_path).transcribe(sound(1), **options(words=True))
    # Distilled models name their teacher's: of use for words alone.
    assert (
        gossamer.load(tmp_path).transcribe(sound(1), **options()).segments
        == gossamer.load(whisper).transcribe(sound(1), **options()).segments
    )


def test_a_cache_without_room_is_one_line(whisper: Path) -> None:
    with pytest.raises(GossamerError, match="a window of sound does not fit: "):
        gossamer.load(whisper, kv_limit=1).transcribe(sound(1), **options())


def test_adapters_are_refused(tmp_path: Path, whisper: Path) -> None:
    module = "model.decoder.layers.0.fc1"
    model = gossamer.load(whisper)
    model.adapters.load(write_lora(tmp_path / "accent", factors({module: (48, WIDTH)}, 4), target_modules=[module]))
    with pytest.raises(GossamerError, match="speech is heard without adapters, and some are set"):
        model.transcribe(sound(1), **options())
    model.adapters.set({})
    assert model.transcribe(sound(1), **options()) == gossamer.load(whisper).transcribe(sound(1), **options())


def test_tokens_that_no_transcript_has_are_heeded_and_others_wishes_told(
    tmp_path: Path, whisper: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in whisper.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    asked = {"suppress_tokens": [1], "begin_suppress_tokens": [2], "no_repeat_ngram_size": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    gossamer.load(tmp_path)
    assert caplog.messages == [f"{tmp_path}: the model asks for no_repeat_ngram_size 3, which is not done here"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"language": "hindi", "task": "translate"}, "language 'hindi', task 'translate'"),
        ({"forced_decoder_ids": [[1, 50276], [2, 50359]]}, "forced_decoder_ids [[1, 50276], [2, 50359]]"),
        ({"max_initial_timestamp_index": 1}, "max_initial_timestamp_index 1"),
        ({"num_beams": 3, "repetition_penalty": 1.2}, "num_beams 3, repetition_penalty 1.2"),
        ({"condition_on_prev_tokens": False}, "condition_on_prev_tokens False"),
        # What checkpoints of several languages, and of English alone, come with.
        ({"forced_decoder_ids": [[1, None], [2, 50359]], "task": "transcribe", "language": None}, None),
        ({"forced_decoder_ids": [[1, 50362]], "max_initial_timestamp_index": 50, "num_beams": 5}, None),
    ],
)
def test_what_a_speech_model_asks_for_and_does_not_get_is_told(
    tmp_path: Path, whisper: Path, caplog: pytest.LogCaptureFixture, asked: dict[str, Any], told: str | None
) -> None:
    for path in whisper.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps(asked))
    gossamer.load(tmp_path)
    assert caplog.messages == ([f"{tmp_path}: the model asks for {told}, which is not done here"] if told else [])


def test_unknown_options_are_told(whisper: Path) -> None:
    with pytest.raises(TypeError, match="no option beam_size"):
        gossamer.load(whisper).transcribe(sound(1), beam_size=2)
