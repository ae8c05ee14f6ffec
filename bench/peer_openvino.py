"""OpenVINO GenAI's side of `prompt_peers.py`: runs in an environment that has openvino-genai and openvino-tokenizers.

    peer_openvino.py FILE.gguf THREADS TOKENS REPEATS

prints one JSON document: how many tokens the prompts had, and of each the tokens a second until the first new one.
"""

from __future__ import annotations

import json
import sys

import openvino_genai


def main() -> None:
    path, threads, tokens, repeats = sys.argv[1], *map(int, sys.argv[2:])
    pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = 2, True, False
    runs, lengths = [], []
    for repeat in range(repeats + 1):  # the first warms up; prompts that begin alike would be remembered
        numbers = range(1000 + 7919 * repeat, 10**6, 31)
        text = " ".join(f"x{number % 1000}" for _, number in zip(range(tokens // 4), numbers, strict=False))
        metrics = pipeline.generate([text], config).perf_metrics
        lengths.append(metrics.get_num_input_tokens())
        runs.append(1000 * lengths[-1] / metrics.get_ttft().mean)
    print(json.dumps({"tokens": lengths[1:], "runs": runs[1:]}))


if __name__ == "__main__":
    main()
