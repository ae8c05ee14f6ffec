"""What one run of the decode loop did, and how fast."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .sampling_options import GENERATE, SamplingOptions
from .weight_streams import told

if TYPE_CHECKING:
    from .cost import Seconds


@dataclass
class Steps:
    """Steps of the engine that only wrote, beside what was predicted of them, and the drafts in them.

    Attributes:
        count: How many; steps that also computed somebody's prompt are left out.
        seconds: That they took, sampling left out.
        weights: Predicted seconds for reading weights.
        kv: Predicted seconds for attention over keys and values.
        rest: Predicted seconds for all else.
        drafted: Tokens that were guessed and computed.
        accepted: Those of them that came true.
    """

    count: int = 0
    seconds: float = 0.0
    weights: float = 0.0
    kv: float = 0.0
    rest: float = 0.0
    drafted: int = 0
    accepted: int = 0

    def add(self, seconds: float, predicted: Seconds) -> None:
        """Notes a step."""
        self.count += 1
        self.seconds += seconds
        self.weights += predicted.weights
        self.kv += predicted.kv
        self.rest += predicted.rest

    def text(self) -> str:
        """Returns the figures for people, in a line."""
        mean = {name: 1e3 * getattr(self, name) / self.count for name in ("seconds", "weights", "kv", "rest")}
        predicted = mean["weights"] + mean["kv"] + mean["rest"]
        drafts = f"; {self.accepted} of {self.drafted} drafted tokens came true" if self.drafted else ""
        return (
            f"steps: {self.count}, {mean['seconds']:.2f} ms each, {predicted:.2f} predicted (weights "
            f"{mean['weights']:.2f}, KV {mean['kv']:.2f}, rest {mean['rest']:.2f}){drafts}"
        )


@dataclass
class Stats:
    """Counts and times of one stream; times are the model's own, without what the caller did between pieces.

    Attributes:
        prompt_tokens: Tokens of the prompt, template included; of one that was longer than the context, what was left.
        reused_tokens: How many of them a conversation already held, so that they were not computed again.
        new_tokens: Tokens chosen, an end-of-text token included. The first comes out of the prefill.
        prefill_seconds: From the start to the first token chosen: the time to first token.
        decode_seconds: For the tokens after the first.
        weight_bytes: Bytes of weights that one decode step reads; of experts, as many as are chosen.
        weight_streams: Those bytes by what they are: values, indices, scales, adapters; empty where nobody tells.
        kv_bytes: Mean bytes of keys and values that one decode step read.
        finish: "eos" (the model ended), "stop" (a stop string), "length" (max_new_tokens), "context" (the context is
            full), or "closed" (the caller or Ctrl-C ended it).
        device: Where the model ran, "cpu" or "cuda".
        sampling: The options of the text, defaults included.
        unheeded: What the model asks for besides, and gossamer does not do.
        context_shifts: How often the context was full, and tokens were dropped from it.
        steps: What steps took, and was predicted; all zero on a GPU, where nothing is.
    """

    prompt_tokens: int
    weight_bytes: int
    reused_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    kv_bytes: float = 0.0
    finish: str = "closed"
    device: str = "cpu"
    sampling: SamplingOptions = GENERATE
    unheeded: tuple[str, ...] = ()
    context_shifts: int = 0
    weight_streams: dict[str, float] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens a second; 0 when no token came after the first."""
        return max(self.new_tokens - 1, 0) / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed a second; 0 before the prefill is done."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of weights, keys and values that one decode step reads, however many tokens it brings."""
        return self.weight_bytes + self.kv_bytes

    @property
    def decode_steps(self) -> int:
        """Steps after the first token: as many as tokens, but for those whose drafts came true."""
        return max(self.new_tokens - 1, 0) - self.steps.accepted

    @property
    def gigabytes_per_second(self) -> float:
        """Achieved bandwidth of the decode steps, in 1e9 bytes a second."""
        return self.bytes_per_token * self.decode_steps / self.decode_seconds / 1e9 if self.decode_seconds else 0.0

    @property
    def roof(self) -> float | None:
        """Bandwidth that `gossamer roofline` measured here, in 1e9 bytes a second; None where it has not."""
        return roof(self.bytes_per_token, self.device)

    @property
    def percent_of_roof(self) -> float | None:
        """Achieved bandwidth in percent of the roof; None where none was measured."""
        most = self.roof
        return 100 * self.gigabytes_per_second / most if most else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields and the derived figures as JSON-ready values."""
        return {
            **asdict(self),
            "sampling": self.sampling.to_dict(),
            "unheeded": list(self.unheeded),
            "decode_steps": self.decode_steps,
            "tokens_per_second": self.tokens_per_second,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "bytes_per_token": self.bytes_per_token,
            "gigabytes_per_second": self.gigabytes_per_second,
            "roof_gigabytes_per_second": self.roof,
            "percent_of_roof": self.percent_of_roof,
        }

    def text(self) -> str:
        """Returns the figures for people, in a few lines."""
        reused = f" ({self.reused_tokens} reused)" if self.reused_tokens else ""
        unheeded = f"; the model also asks for {', '.join(self.unheeded)}, not done here" if self.unheeded else ""
        percent, roof = self.percent_of_roof, self.roof
        times = f"{self.context_shifts} times" if self.context_shifts > 1 else "once"
        shifts = f"\ncontext: full {times}, older tokens were dropped" if self.context_shifts else ""
        unit = "step" if self.steps.accepted else "token"
        steps = f"\n{self.steps.text()}" if self.steps.count else ""
        share = "" if percent is None else f", {percent:.0f}% of the roof of {roof:.1f}"
        return (
            f"prompt: {self.prompt_tokens} tokens{reused}, first token after {self.prefill_seconds:.2f} s, "
            f"{self.prefill_tokens_per_second:.1f} tokens/s\n"
            f"decode: {self.new_tokens} tokens ({self.finish}), {self.tokens_per_second:.1f} tokens/s, "
            f"{self.weight_bytes / 1e6:.1f} MB weights{told(self.weight_streams)} + "
            f"{self.kv_bytes / 1e6:.1f} MB KV a {unit}, "
            f"{self.gigabytes_per_second:.1f} GB/s{share}\n"
            f"sampling: {self.sampling.text()}{unheeded}{shifts}{steps}"
        )


def roof(size: float, device: str) -> float | None:
    """Returns the bandwidth that `gossamer roofline` measured here, in 1e9 bytes a second; None where it has not.

    Args:
        size: Bytes that are read again and again.
        device: "cpu" or "cuda".
    """
    from ..gpu import roofline
    from ..machine.roofline import cached

    if device == "cuda":
        gpu = roofline.cached()
        return gpu.bandwidth if gpu else None
    measured = cached()
    return measured.roof(size) if measured else None
