"""Texts held to JSON schemas: whether all of them are valid, and what that costs beside free texts.

    python bench/grammars.py                     # 200 texts, 10 schemas, the default model
    python bench/grammars.py --texts 2 -m PATH

Each text is drawn, constrained and free in turns, one at a time and without drafts; the ratio of tokens a second
counts, the median of all turns. Every constrained text is parsed and validated by the package `jsonschema`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from common import write_result

import gossamer
from gossamer import Model
from gossamer.loading import DEFAULT_MODEL

WORD = {"type": "string", "maxLength": 24}
TEXT = {"type": "string", "maxLength": 80}


def record(**properties: Any) -> dict[str, Any]:
    """An object of which every property is required."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "person": (
        "Describe a person as JSON.",
        record(
            name=WORD, age={"type": "integer", "minimum": 0, "maximum": 120}, email=WORD, married={"type": "boolean"}
        ),
    ),
    "recipe": (
        "Give a recipe for soup as JSON.",
        record(
            title=WORD,
            minutes={"type": "integer", "minimum": 1, "maximum": 600},
            steps={"type": "array", "items": TEXT, "minItems": 2, "maxItems": 4},
        ),
    ),
    "sentiment": (
        "What is the mood of: I loved this film?",
        record(mood={"enum": ["good", "bad", "mixed"]}, confidence={"type": "number", "minimum": 0, "maximum": 1}),
    ),
    "points": (
        "List some points in the plane as JSON.",
        {
            "type": "array",
            "items": record(
                x={"type": "integer", "minimum": -99, "maximum": 99},
                y={"type": "integer", "minimum": -99, "maximum": 99},
            ),
            "minItems": 3,
            "maxItems": 6,
        },
    ),
    "event": (
        "When and where is the next meeting? Answer as JSON.",
        record(
            day={"type": "string", "format": "date"},
            time={"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"},
            place=WORD,
        ),
    ),
    "call": (
        "Call a tool to look up the weather in Rome.",
        record(
            tool={"const": "weather"},
            arguments=record(city=WORD, unit={"enum": ["celsius", "fahrenheit"]}),
            reason={"anyOf": [{"type": "null"}, TEXT]},
        ),
    ),
    "tree": (
        "Draw a family tree as JSON.",
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "name": WORD,
                        "children": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 3},
                    },
                    "required": ["name", "children"],
                    "additionalProperties": False,
                },
                "leaf": record(name=WORD),
            },
            "$ref": "#/$defs/node",
        },
    ),
    "quiz": (
        "Make a quiz question about spiders.",
        record(
            question=TEXT,
            answers={"type": "array", "items": WORD, "minItems": 4, "maxItems": 4},
            right={"enum": [1, 2, 3, 4]},
        ),
    ),
    "order": (
        "Order two books.",
        record(
            id={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            items={
                "type": "array",
                "items": record(title=WORD, price={"type": "number", "minimum": 0, "maximum": 999}),
                "minItems": 1,
                "maxItems": 2,
            },
            paid={"type": "boolean"},
        ),
    ),
    "flags": (
        "Which settings should be on?",
        {
            "type": "object",
            "properties": {f"option_{i}": {"type": "boolean"} for i in range(8)},
            "required": ["option_0"],
            "additionalProperties": False,
        },
    ),
}


def rate(model: Model, prompt: str, seed: int, **options: Any) -> tuple[str, str, float, int]:
    """A text, why it ended, tokens a second, and tokens."""
    text = model.generate(prompt, temperature=0.8, seed=seed, draft="off", **options)
    stats = model.last_stats
    assert stats is not None
    return text, stats.finish, stats.tokens_per_second, stats.new_tokens


def measure(model: Model, texts: int) -> dict[str, Any]:
    """What came of every schema."""
    import jsonschema

    rows = []
    for name, (prompt, schema) in SCHEMAS.items():
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        rate(model, prompt, 0, schema=schema, max_new_tokens=4)  # compiled
        valid, ended, ratios, tokens = 0, 0, [], 0
        for seed in range(texts):
            text, finish, held, new = rate(model, prompt, seed, schema=schema, max_new_tokens=400)
            *_, free, _ = rate(model, prompt, seed, max_new_tokens=max(new, 16), logit_bias=_endless(model))
            ratios.append(held / free)
            tokens += new
            ended += finish == "eos"
            try:
                validator.validate(json.loads(text))
                valid += 1
            except (ValueError, jsonschema.ValidationError) as error:
                print(f"{name}, seed {seed}: {finish}: {text!r}: {error}", file=sys.stderr)
        rows.append({"schema": name, "texts": texts, "valid": valid, "ended": ended, "tokens": tokens,
                     "ratio": statistics.median(ratios), "ratios": ratios})  # fmt: skip
        print(f"{name:10} {valid} of {texts} valid, {tokens} tokens, {rows[-1]['ratio']:.2f} of free", flush=True)
    every = [ratio for row in rows for ratio in row.pop("ratios")]
    return {
        "rows": rows,
        "valid": sum(row["valid"] for row in rows),
        "texts": texts * len(rows),
        "ratio": statistics.median(every),
    }


def _endless(model: Model) -> dict[int, float]:
    """Biases that keep a text from ending, so that as many tokens are timed."""
    return dict.fromkeys(model.tokenizer.eos_ids, -1000.0)


def main() -> None:
    """Measures, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL)
    parser.add_argument("--texts", type=int, default=20, help="of each schema (default 20)")
    parser.add_argument("--name", default="grammars")
    args = parser.parse_args()
    found = measure(gossamer.load(args.model), args.texts)
    print(f"{found['valid']} of {found['texts']} valid; {found['ratio']:.2f} of the tokens a second of free texts")
    write_result(args.name, {"model": args.model, **found})


if __name__ == "__main__":
    main()
