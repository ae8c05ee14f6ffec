"""Models that write no chats: vectors of texts, and speech."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

import gossamer
from adapter_files import factors, write_lora
from serving import Running, serving, tiny_model
from tiny import save_tokenizer
from whispers import END, VOCAB, backend, token

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")


def bert(folder: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=320, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return gossamer.load(folder, threads=1)


def whisper(folder: Path) -> Any:
    torch.manual_seed(5)
    config = transformers.WhisperConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_target_positions=64, init_std=0.4,
        decoder_start_token_id=token("startoftranscript"), eos_token_id=END, bos_token_id=END, pad_token_id=END,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": [[0, 1]]}))
    backend().save(str(folder / "tokenizer.json"))
    return gossamer.load(folder, threads=1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("encoders")
    models = {"tiny": tiny_model(folder / "tiny"), "bert": bert(folder / "bert"), "ear": whisper(folder / "ear")}
    block = "encoder.layer.1."
    for model, adapter, shapes in (
        ("bert", "task", {f"{block}intermediate.dense": (64, 48), f"{block}output.dense": (48, 64)}),
        ("ear", "accent", {"model.decoder.layers.0.fc1": (48, 32)}),
    ):
        path = write_lora(folder / adapter, factors(shapes, 4), target_modules=list(shapes))
        models[model].adapters.load(path, weight=0)
    with serving(models, max_sound=1 << 20) as server:
        yield server


TEXTS = ["The spider spins.", "A thread"]


def test_embeddings(running: Running, client: Any) -> None:
    expected = running.models["bert"].embed(TEXTS)
    answer = client.embeddings.create(model="bert", input=TEXTS)  # which asks for base64 by itself
    assert (answer.object, answer.model) == ("list", "bert")
    assert [(each.index, each.object) for each in answer.data] == [(0, "embedding"), (1, "embedding")]
    np.testing.assert_array_equal(np.array([each.embedding for each in answer.data], np.float32), expected)
    tokens = sum(len(running.models["bert"].tokenizer.encode(text)) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    plain = client.embeddings.create(model="bert", input=TEXTS[1], encoding_format="float", dimensions=48)
    np.testing.assert_array_equal(np.array(plain.data[0].embedding, np.float32), expected[1])
    raw = running.post("embeddings", model="bert", input=TEXTS[1], encoding_format="base64").json()
    assert base64.b64decode(raw["data"][0]["embedding"]) == expected[1].tobytes()


def test_embeddings_with_an_adapter(running: Running, client: Any) -> None:
    model = running.models["bert"]
    vectors = {}
    for name, adapters in (("bert", ()), ("task", "task")):
        answer = client.embeddings.create(model=name, input=TEXTS)
        vectors[name] = np.array([each.embedding for each in answer.data], np.float32)
        assert answer.model == name
        np.testing.assert_array_equal(vectors[name], model.embed(TEXTS, adapters=adapters))
    assert np.abs(vectors["task"] - vectors["bert"]).max() > 0.01


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"input": [[1, 2]]}, "input", "a list of texts"),
        ({"input": []}, "input", "a list of texts"),
        ({"input": ["a", ""]}, "input", "must not be empty"),
        ({"input": "x" * 100}, "input", "the model's context holds 40"),
        ({"input": ["x"] * 2049}, "input", "2048"),
        ({"dimensions": 12}, "dimensions", "it may be 48"),
        ({"encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"model": "tiny"}, "model", "is for /v1/chat/completions"),
    ],
)
def test_embeddings_are_refused_by_name(running: Running, more: Any, param: str, words: str) -> None:
    answer = running.post("embeddings", **{"model": "bert", "input": "x", **more})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]
    assert running.server.state.admitted == 0


@pytest.mark.parametrize(("model", "words"), [("bert", "is for /v1/embeddings"), ("ear", "is for /v1/audio/")])
def test_who_writes_no_text_says_what_it_does(running: Running, model: str, words: str) -> None:
    for path, more in (
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("completions", {"prompt": "x"}),
    ):
        answer = running.post(path, model=model, **more)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "model"
        assert words in error["message"] or "no chat template" in error["message"]


def sound(seconds: float) -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(1).normal(0, 0.1, int(16_000 * seconds)), 16_000, format="WAV")
    file.seek(0)
    file.name = "sound.wav"
    return file


def test_transcriptions(running: Running, client: Any) -> None:
    options: dict[str, Any] = {"model": "ear", "language": "en", "temperature": 0.5}
    expected = running.models["ear"].transcribe(sound(2), language="english", temperatures=(0.5,))
    assert client.audio.transcriptions.create(file=sound(2), **options).text == expected.text
    text = client.audio.transcriptions.create(file=sound(2), response_format="text", **options)
    assert text == expected.text + "\n"
    verbose = client.audio.transcriptions.create(
        file=sound(2), response_format="verbose_json", timestamp_granularities=["word", "segment"], **options
    )
    assert (verbose.language, verbose.duration, verbose.text) == ("en", 2.0, expected.text)
    timed = running.models["ear"].transcribe(sound(2), language="en", temperatures=(0.5,), words=True)
    assert [(each.start, each.end, each.text, each.tokens) for each in verbose.segments] == [
        (each.start, each.end, each.text, each.tokens) for each in timed.segments
    ]
    assert "".join(word.word for word in verbose.words) == expected.text.replace(" ", "")
    subtitles = client.audio.transcriptions.create(file=sound(2), response_format="vtt", **options)
    assert subtitles.startswith("WEBVTT\n")
    assert running.server.state.admitted == 0


def test_translations(running: Running) -> None:
    form = {"model": "ear", "temperature": "0.5"}
    answer = httpx.post(f"{running.base}/audio/translations", data=form, files={"file": sound(1)}, timeout=30)
    expected = running.models["ear"].transcribe(sound(1), task="translate", temperatures=(0.5,))
    assert answer.json() == {"text": expected.text}


@pytest.mark.parametrize(
    ("more", "status", "param", "words"),
    [
        ({"model": "tiny"}, 400, "model", "is for /v1/chat/completions"),
        ({"model": "accent"}, 400, "model", "is an adapter, and speech is heard without"),
        ({"language": "klingon"}, 400, "language", "not known"),
        ({"response_format": "xml"}, 400, "response_format", "must be one of"),
        ({"temperature": "hot"}, 400, "temperature", "from 0 to 1"),
        ({"stream": "true"}, 400, "stream", "not supported"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities[]", "verbose_json"),
        ({"file": b"no sound"}, 400, "file", "not audio"),
        ({"file": b""}, 400, "file", "missing, or empty"),
        ({"file": bytes(2 << 20)}, 413, None, "1048576 bytes"),
        ({"colour": "red"}, 400, "colour", "no such parameter"),
    ],
)
def test_speech_is_refused_by_name(running: Running, more: Any, status: int, param: str | None, words: str) -> None:
    fields = {"model": "ear", **{name: value for name, value in more.items() if name != "file"}}
    files = {"file": ("sound.wav", more.get("file", sound(0.1).read()))}
    answer = httpx.post(f"{running.base}/audio/transcriptions", data=fields, files=files, timeout=30)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]
    assert running.server.state.admitted == 0


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x--"),
        (
            "multipart/form-data; boundary=x",
            b"".join(b'--x\r\ncontent-disposition: form-data; name="a%d"\r\n\r\n1\r\n' % n for n in range(40))
            + b"--x--",
        ),
    ],
)
def test_forms_that_are_none(running: Running, kind: str, body: bytes) -> None:
    url = f"{running.base}/audio/transcriptions"
    answer = httpx.post(url, content=body, headers={"content-type": kind}, timeout=30)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith("the request's form is not valid: ")


def test_vectors_that_nobody_waits_for_are_not_computed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    model = running.models["bert"]
    engine, begun = model.decoder, threading.Event()

    class Slow:
        batches = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def encode(self, *args: Any, **options: Any) -> Any:
            self.batches += 1
            begun.set()
            time.sleep(0.3)
            return engine.encode(*args, **options)

    slow = Slow()
    monkeypatch.setattr(model, "decoder", slow)
    monkeypatch.setattr("gossamer.generation.embedding._check_encodes", lambda model: model.decoder)
    monkeypatch.setattr("gossamer.generation.embedding._TOKENS", 8)
    body = {"model": "bert", "input": ["a thread"] * 2000}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.base}/embeddings", json=body, timeout=0.5)
    assert begun.is_set()
    running.until(lambda: running.server.state.admitted == 0)
    monkeypatch.setattr(model, "decoder", engine)
    assert running.post("embeddings", model="bert", input="x").status_code == 200  # in its turn, behind the other
    assert slow.batches < 20
