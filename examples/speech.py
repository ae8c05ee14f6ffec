"""Speech: Whisper transcribes with packed weights.

    python examples/speech.py
    python examples/speech.py FOLDER_OR_HUB_ID --audio a.wav b.wav

By default whisper-base on five sentences of a LibriVox recording, both fetched once; recordings: 16 kHz, mono, 16 bit.
"""

from __future__ import annotations

import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper_base
from numpy.typing import NDArray
from side_by_side import before_and_after, options
from transformers import AutoProcessor, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

import gossamer.torch as gt
from gossamer.text.metrics import edits
from gossamer.zoo.builtin import Package, fetch

RATE = 16000
ENGLISH = {"language": "en", "task": "transcribe"}

# Sentences of "Sense and Sensibility", read for LibriVox; other voices, to calibrate with; what is said.
SENTENCES = {
    "librivox/sense_and_sensibility_01_austen_64kb-0870.wav": (
        "b0557cf95c974d930577e58e46b7f068c432a6e3afcc286563d88922b2a5315c"
    ),
    "librivox/sense_and_sensibility_01_austen_64kb-0880.wav": (
        "fbec491ef00ee734a67f0ee318e98c51c157b479e1629ff4f4426861ecac0414"
    ),
    "librivox/sense_and_sensibility_01_austen_64kb-0890.wav": (
        "5793ffbdee55fb8bfd284943a6866864c832d9d4accf2661cabd39915c84ee10"
    ),
    "librivox/sense_and_sensibility_01_austen_64kb-0920.wav": (
        "40882414ef4cc51f3ff7a63bad0c8c87e7f595ffeb8209fbf756c8ebc5c28a59"
    ),
    "librivox/sense_and_sensibility_01_austen_64kb-0930.wav": (
        "954adbf0b56ac8a148cbe77b39ca18d76b5f2a1e1f405565bd786ce3e68a68b7"
    ),
}
OTHERS = {
    "cards/001.wav": "899951e768666f27c8f8b1d4090b96fe7909cae9cec01bec0a5d5d1b8a8d566e",
    "cards/002.wav": "a3f9eae6fdb69a1231989e39a14d62388a6f52fb59666c76d95005318fadafec",
    "cards/003.wav": "00d283e46bc257ae479e4aa86593cadb541656eba1d19fc8abeece37f6a5a18b",
    "cards/004.wav": "4c44a8177f5b128b99f078cdeb918119933155574231f1833e8840d1af09c521",
    "cards/005.wav": "090f18f5f76cf8b2b43cd9e6b07823f4685a4742d9a36cd98b174a6586c18cf9",
    "forever/input_2_16k.wav": "a67ddc6424abc306863a50aab4dcb37b31fa28e601dadc80e66751de39499402",
    "forever/input_4_16k.wav": "16ee530ce7017b80962d9c6cad884ca4d044805a7169cc6c80f8f55c58ae093b",
}
SAID = {"librivox/transcription": "4cc29e04a6dcd29242893b3ee20470e50b6ace45f4387bb619e5218145c66f99"}
AUDIO = Package(
    "pocketsphinx==5.1.1",
    {f"pocketsphinx-5.1.1/test/data/{name}": sha256 for name, sha256 in {**SENTENCES, **OTHERS, **SAID}.items()},
    source=True,
)


def recordings(names: Sequence[str]) -> list[Path]:
    """Returns where recordings of `AUDIO` lie."""
    folder = fetch(AUDIO)
    return [folder / Path(name).name for name in names]


def transcription(path: Path) -> str:
    """Returns what is said in a sentence."""
    (text,) = re.findall(rf"<s> (.*) </s> \({path.stem}\)", (path.parent / "transcription").read_text())
    return str(text)


def read_wav(path: Path) -> NDArray[np.float32]:
    """Returns the samples of a wave file, 16 kHz, mono, 16 bit, between -1 and 1."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"{path}: must be 16 kHz, mono, 16 bit")
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def features(extractor: WhisperFeatureExtractor, sounds: Sequence[NDArray[np.float32]]) -> torch.Tensor:
    """Returns the mel spectrograms of recordings, half a minute each: [recordings, mels, frames]."""
    found: torch.Tensor = extractor(list(sounds), sampling_rate=RATE, return_tensors="pt").input_features
    return found


def prune(model: WhisperForConditionalGeneration, extractor: WhisperFeatureExtractor, sparsity: float) -> None:
    """Prunes by ADMM on what the dense model hears in the other voices, one after another."""
    heard = features(extractor, [np.concatenate([read_wav(path) for path in recordings(list(OTHERS))])])
    spoken = model.generate(heard, **ENGLISH)
    gt.prune_linears(model, [{"input_features": heard, "decoder_input_ids": spoken}], sparsity=sparsity)


def word_error_rate(heard: Sequence[str], said: Sequence[str]) -> float:
    """Returns the fewest words to insert, delete or replace, in relation to those that were said."""
    errors = sum(edits(_words(one), _words(other)) for one, other in zip(heard, said, strict=True))
    return errors / sum(len(_words(text)) for text in said)


def _words(text: str) -> list[str]:
    words = re.findall(r"[a-z']+", text.lower())
    return ["mister" if word == "mr" else word for word in words]


def tiny() -> WhisperForConditionalGeneration:
    """Returns a Whisper of random weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 50}
    sizes |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": 96 for side in ("encoder", "decoder")}
    return WhisperForConditionalGeneration(WhisperConfig(**sizes)).eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the example."""
    parser = options(__doc__, "whisper-base")
    parser.add_argument("--audio", type=Path, nargs="+", help="recordings (default: five sentences)")
    parser.set_defaults(sparsity=0.4)
    args = parser.parse_args(arguments)

    if args.tiny:
        model = tiny()
        gt.prune_linears(model, sparsity=args.sparsity, method="magnitude")
        mel = torch.randn(1, 80, 100)
        before_and_after(model, lambda: model(input_features=mel, decoder_input_ids=torch.tensor([[1, 2, 3]])), args)
        return
    if args.model:
        processor = AutoProcessor.from_pretrained(args.model)
        model = WhisperForConditionalGeneration.from_pretrained(args.model).eval()
        extractor, read = processor.feature_extractor, processor.tokenizer.batch_decode
    else:
        model, extractor, tokenizer = whisper_base.load()
        read = tokenizer.decode_batch
    paths = args.audio or recordings(list(SENTENCES))
    mel = features(extractor, [read_wav(path) for path in paths])

    def transcribe() -> list[str]:
        return [text.strip() for text in read(model.generate(mel, **ENGLISH).tolist(), skip_special_tokens=True)]

    texts = {"dense": transcribe()}
    if args.sparsity:
        prune(model, extractor, args.sparsity)
    texts["pruned"], texts["sparsified"] = before_and_after(model, transcribe, args)
    for kind, lines in texts.items():
        rate = (
            "" if args.audio else f", word error rate {word_error_rate(lines, [transcription(p) for p in paths]):.1%}"
        )
        print(f"\n{kind}{rate}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
