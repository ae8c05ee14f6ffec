"""How near a model's chat comes to its dense one's: divergence, repetition, and facts asked plainly.

    python bench/chat_quality.py smollm2-135m-instruct --dense smollm2-135m-instruct

`--dense` names the checkpoint to compare with, which runs in float32 (of a built-in model, the file that it is made
from). It answers twelve questions three times each, 100 tokens at temperature 0.7; both models then read every answer,
and the mean Kullback-Leibler divergence KL(dense || model) over its tokens is taken. For repetition each writes answers
of its own as `gossamer chat` does by default. The questions are none of those that built-in models are calibrated on.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NamedTuple

import numpy as np
from common import write_result
from numpy.typing import NDArray

import gossamer
from gossamer.generation.sampling import sampler
from gossamer.generation.sampling_options import SamplingOptions
from gossamer.zoo import builtin

QUESTIONS = (
    "Why do leaves change colour in autumn?",
    "How do I boil an egg?",
    "Write a short poem about the sea.",
    "Explain to a child what a computer program is.",
    "What are the benefits of regular exercise?",
    "Tell me a short story about a dragon who is afraid of fire.",
    "What is the difference between weather and climate?",
    "Give me tips for learning a new language.",
    "Write an email to a friend with an invitation to a birthday party.",
    "What does a teacher do all day?",
    "How is paper made?",
    "Describe a walk through a forest in winter.",
)
SEEDS = (0, 1, 2)
TOKENS = 100
TEMPERATURE = 0.7
# What `gossamer chat` draws with by default.
CHAT = {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.05}
# Longer answers show loops better.
REPETITION_TOKENS = 200
# Asked plainly, the likeliest answer has to hold so many of these words.
FRUITS = (
    "apple", "banana", "orange", "grape", "mango", "strawberr", "blueberr", "raspberr", "peach", "pineapple",
    "kiwi", "lemon", "melon", "cherr", "plum", "avocado", "papaya", "apricot",
)  # fmt: skip
FACTS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("What is the capital of France?", 1, ("paris",)),
    ("What is the capital of Japan?", 1, ("tokyo",)),
    ("Name three fruits.", 3, FRUITS),
)
CONVERSATION = (
    "Hello! My name is Anna. I would like to have a small garden.",
    "Which flowers are easy to grow?",
    "How often do I have to water them?",
    "And what do they need in winter?",
)


class Answer(NamedTuple):
    """The tokens of a question with its answer, and where the answer begins."""

    tokens: list[int]
    start: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="as for gossamer.load")
    parser.add_argument(
        "--dense", default="smollm2-135m-instruct", help="built-in name, checkpoint folder or GGUF file"
    )
    parser.add_argument("--name", default="chat_quality", help="of the result file; empty writes none")
    parser.add_argument("--divergence-only", action="store_true")
    arguments = parser.parse_args()

    path = builtin.source(arguments.dense) if arguments.dense in builtin.names() else arguments.dense
    dense = gossamer.load(path, activations="f32")
    read = answers(dense, TOKENS, temperature=TEMPERATURE)
    rows = []
    whole = not arguments.divergence_only
    wanted = repetition(dense) if whole else 0.0
    for name in arguments.models:
        model = gossamer.load(name)
        row: dict[str, Any] = {
            "model": name,
            "notes": model.info["notes"],
            "divergence": divergence(dense, model, read),
        }
        if whole:
            row |= {"repetition": repetition(model), "repetition_dense": wanted}
            row["repetition_ratio"] = row["repetition"] / wanted
            row |= {"facts": facts(model), "conversation": conversation(model)}
        row["zeros"], row["bytes"] = zeros(model)
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    setting = {"dense": arguments.dense, "questions": QUESTIONS, "seeds": SEEDS, "tokens": TOKENS, "chat": CHAT}
    if arguments.name:
        print(write_result(arguments.name, {"setting": setting, "rows": rows}))


def answers(model: gossamer.Model, tokens: int, **options: Any) -> list[Answer]:
    """Returns an answer to each question for each seed, all written side by side.

    Args:
        model: Who answers.
        tokens: The most of each.
        options: Of `SamplingOptions`.
    """
    prompts = [model.tokenizer.chat([{"role": "user", "content": question}]) for question in QUESTIONS for _ in SEEDS]
    samples = [sampler(SamplingOptions(**options, seed=seed)) for _ in QUESTIONS for seed in SEEDS]
    texts = [list(prompt) for prompt in prompts]
    pending = dict(enumerate(prompts))
    try:
        while pending:
            logits = model.decoder.step([(row, np.asarray(new, np.int32)) for row, new in pending.items()])
            for row, scores in zip(list(pending), logits, strict=True):
                token = samples[row](scores, texts[row])
                texts[row].append(token)
                pending[row] = [token]
                if token in model.tokenizer.eos_ids or len(texts[row]) == len(prompts[row]) + tokens:
                    del pending[row]
    finally:
        for row in range(len(texts)):
            model.decoder.free(row)
    return [Answer(text, len(prompt)) for text, prompt in zip(texts, prompts, strict=True)]


def divergence(dense: gossamer.Model, model: gossamer.Model, answers: list[Answer]) -> float:
    """Returns the mean of KL(dense || model) over the tokens of all answers, in nats."""
    total, count = 0.0, 0
    for tokens, start in answers:
        wanted, found = (_log_probabilities(each.logits(tokens[:-1])[start - 1 :]) for each in (dense, model))
        total += float((np.exp(wanted) * (wanted - found)).sum())
        count += len(wanted)
    return total / count


def _log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


def repetition(model: gossamer.Model) -> float:
    """Returns the share of four-grams that were in the same answer before."""
    again, count = 0, 0
    for tokens, start in answers(model, REPETITION_TOKENS, **CHAT):
        grams = [tuple(tokens[i : i + 4]) for i in range(start, len(tokens) - 3)]
        again += len(grams) - len(set(grams))
        count += len(grams)
    return again / count


def facts(model: gossamer.Model) -> list[dict[str, Any]]:
    """Returns the likeliest answers to plain questions, and whether they name what they should."""
    rows = []
    for question, least, words in FACTS:
        text = model.generate(question, max_new_tokens=64)
        named = sum(word in text.lower() for word in words)
        rows.append({"question": question, "answer": text, "right": named >= least})
    return rows


def conversation(model: gossamer.Model) -> list[dict[str, str]]:
    """Returns four turns of a chat, drawn as `gossamer chat` draws them."""
    chat = model.conversation()
    return [{"user": said, "answer": "".join(chat.say(said, max_new_tokens=120, **CHAT))} for said in CONVERSATION]


def zeros(model: gossamer.Model) -> tuple[float, int]:
    """Returns the share of zeros in the weights of the blocks, and the bytes of all weights."""
    blocks = [weight for name, weight in model.weights.items() if name.startswith("layers.")]
    entries = sum(weight.rows * weight.cols for weight in blocks)
    return 1 - sum(weight.nnz for weight in blocks) / entries, sum(weight.nbytes for weight in model.weights.values())


if __name__ == "__main__":
    main()
