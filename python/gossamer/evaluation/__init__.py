"""gossamer as a model of EleutherAI's lm-evaluation-harness: `python -m gossamer.evaluation run --model gossamer …`."""
