"""What the engine needs to know about a decoder, as plain fields that select variants."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import GossamerError


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer, independent of the checkpoint that it came from.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of blocks.
        heads: Query heads.
        kv_heads: Key/value heads; divides `heads`.
        head_dim: Width of one head.
        intermediate: Width of the gated MLP.
        vocab: Rows of the embedding and of the head.
        context: Largest number of tokens that a sequence may hold.
        norm_eps: Epsilon of the RMS norms.
        inv_freq: Rotary inverse frequencies after any scaling, `rotary_dim / 2` float32 values; rotary pairs are
            (j, j + rotary_dim / 2), and dimensions of a head beyond `rotary_dim` stay as they are.
        rope_scale: Factor on the rotary cosines and sines (YaRN, LongRoPE); 1 otherwise.
        activation: Nonlinearity of the gate; "silu" is the only one today.
        tied: Whether the head is the embedding.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    norm_eps: float
    inv_freq: tuple[float, ...]
    rope_scale: float = 1.0
    activation: str = "silu"
    tied: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {**asdict(self), "inv_freq": list(self.inv_freq)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecoderConfig:
        """Builds a config from `to_dict` output.

        Args:
            values: Field values; unknown and missing fields are errors.

        Raises:
            GossamerError: a field is unknown, missing, or of the wrong type.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise GossamerError(f"decoder config has unknown fields: {', '.join(unknown)}")
        try:
            return cls(**{**values, "inv_freq": tuple(float(v) for v in values.get("inv_freq", ()))})
        except (TypeError, ValueError, OverflowError) as error:
            raise GossamerError(f"decoder config: {error}") from None
