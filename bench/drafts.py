"""What drafts give: tokens a second with `auto` over those with `off`, in one sitting, where text is copied and not.

    python bench/drafts.py SmolLM2-135M-Instruct.Q4_1.gguf              # packed as int4
    python bench/drafts.py MODEL --weights int8 --rounds 7

Sides take turns, and the ratio counts, the median of the rounds; the text of both is compared. Tokens a second are of
decoding, sampling included. Run it on an idle machine; GOSSAMER_ISA forces a lower tier, and --name gives its results a
file of their own.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from common import write_result

import gossamer
from gossamer import Model
from gossamer.generation.cost_measured import measure
from gossamer.generation.sampling_options import CHAT
from gossamer.generation.stats import Stats

COPY, PROSE = 1.8, 0.97  # asked of the mean ratio of what is copied, and of the least of the other

_STORY = (
    "The lighthouse keeper of Saint Mary's Rock had not spoken to anyone since the storm. Every morning he climbed the "
    "hundred and twelve steps to the lamp, wiped the salt from the glass, and wrote the weather into a brown book. On "
    "the ninth day a small boat came out of the fog, and in it sat a girl with a basket of oranges."
)
_CODE = '''def total_price(items, tax):
    """Returns the price of all items with tax."""
    total = 0
    for item in items:
        total = total + item.price * item.count
    if tax is not None:
        total = total + total * tax
    return total


def print_items(items):
    for item in items:
        print(item.name, item.price, item.count)
'''
_STEPS = """1. Open the copper kettle and fill it with water.
2. Light the fire under the kettle.
3. Wait until the water boils.
4. Put two spoons of tea into the pot.
5. Pour the water over the tea.
6. Wait for four minutes and pour the tea into cups."""
_TABLE = "name,city,year\nAda,London,1815\nGrace,New York,1906\nAlan,London,1912\nEmmy,Erlangen,1882\nSofia,Moscow,1850"

PROMPTS: dict[str, tuple[str, ...]] = {
    "copy": (
        f"Repeat the following text exactly, word for word:\n\n{_STORY}",
        f"Add a comment to each line of this code:\n\n```python\n{_CODE}```",
        f"Repeat these steps:\n\n{_STEPS}",
        f"Here is a table as CSV. Write it out again unchanged, and then once more:\n\n{_TABLE}",
        f"Fix the spelling in this text, and write out all of it:\n\n{_STORY.replace('morning', 'mornig')}",
    ),
    "prose": (
        "Write a short story about a clockmaker who finds a door in the mountain.",
        "Explain why leaves turn red and yellow in autumn.",
        "What should a visitor see in Rome in two days, and why?",
        "Tell me about the history of paper.",
    ),
}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {name: getattr(CHAT, name) for name in ("temperature", "top_p", "min_p", "repeat_penalty")},
}


def run(model: Model, prompt: str, draft: str, options: dict[str, Any]) -> tuple[str, Stats]:
    """One text."""
    text = model.generate(prompt, draft=draft, **options)
    assert model.last_stats is not None
    return text, model.last_stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for gossamer.load")
    parser.add_argument("--weights", default="int4", help="type to pack a checkpoint with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--name", default="drafts", help="of the file of results")
    args = parser.parse_args()
    model = gossamer.load(args.model, weights=args.weights)
    measure(model)
    rows = []
    for kind, prompts in PROMPTS.items():
        for chosen, options in SAMPLING.items():
            for number, prompt in enumerate(prompts):
                seconds: dict[str, list[float]] = {"off": [], "auto": []}
                texts, stats = {}, None
                for turn in range(args.rounds + 1):
                    for draft, found in seconds.items():
                        texts[draft], stats = run(model, prompt, draft, {**options, "max_new_tokens": args.tokens})
                        if turn and stats.new_tokens > 1:
                            found.append(stats.decode_seconds / (stats.new_tokens - 1))
                if not seconds["off"] or stats is None:
                    print(f"{kind} {number} {chosen}: a text of one token")
                    continue
                ratio = statistics.median(a / b for a, b in zip(seconds["off"], seconds["auto"], strict=True))
                row = {"kind": kind, "prompt": prompt, "sampling": chosen, "auto_over_off": ratio}
                row |= {"same": texts["off"] == texts["auto"], "new_tokens": stats.new_tokens, "seconds": seconds}
                row |= {"steps": stats.to_dict()["steps"], "text": texts["auto"]}
                rows.append(row)
                print(
                    f"{kind} {number} {chosen}: {ratio:.2f} times off, {stats.new_tokens} tokens, "
                    f"{stats.steps.accepted} of {stats.steps.drafted} drafted came true"
                    f"{'' if row['same'] else '; THE TEXT IS ANOTHER'}",
                    flush=True,
                )
    summary = {}
    for kind, chosen in ((kind, chosen) for kind in PROMPTS for chosen in SAMPLING):
        ratios = [row["auto_over_off"] for row in rows if (row["kind"], row["sampling"]) == (kind, chosen)]
        summary[f"{kind} {chosen}"] = {"mean": statistics.mean(ratios), "least": min(ratios)}
        print(f"{kind}, {chosen}: mean {statistics.mean(ratios):.2f}, least {min(ratios):.2f}")
    assert all(row["same"] for row in rows)
    setup = {"weights": args.weights, "tokens": args.tokens, "rounds": args.rounds}
    print(
        write_result(
            args.name, {"setup": setup, "asked": {"copy": COPY, "prose": PROSE}, "summary": summary, "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
