"""The Llama family: RMS norms, rotary positions, grouped-query attention, gated SiLU MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import GossamerError
from . import keys
from .fields import flag, integer, number, quotient, words
from .relatives import BLOCKS, ENDS, INSIDE, each_attention, head_dim, windows
from .rope import rotary
from .sources import Source, place
from .spec import (
    MOST_LAYERS,
    Attention,
    Block,
    Branch,
    Embedding,
    Head,
    Mlp,
    Norm,
    Rope,
    Stack,
    Transformer,
    attention_scale,
)

PREFIX = "model."

_BIASES = {"attention_bias": ("q", "k", "v", "o"), "mlp_bias": ("gate", "up", "down")}
_KEYS = words(
    """
    attention_bias head_dim hidden_act hidden_size intermediate_size layer_types max_position_embeddings
    max_window_layers mlp_bias num_attention_heads num_hidden_layers num_key_value_heads
    original_max_position_embeddings partial_rotary_factor rms_norm_eps rope_parameters rope_scaling rope_theta
    sliding_window tie_word_embeddings use_sliding_window vocab_size
    """
)


@dataclass(frozen=True)
class Sizes:
    """A decoder of this family as plain fields, as folders of version 1 have them.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of blocks, all alike.
        heads: Query heads.
        kv_heads: Key/value heads.
        head_dim: Width of one head.
        intermediate: Width of the MLP.
        vocab: Rows of the embedding and of the head.
        context: Largest number of tokens that a sequence may hold.
        norm_eps: Epsilon of the norms.
        inv_freq: Rotary inverse frequencies, see `Rope`.
        rope_scale: Factor on the rotary cosines and sines.
        tied: Whether the head is the embedding.
        biases: Linears of a block that have a bias.
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
    tied: bool = False
    biases: tuple[str, ...] = ()

    def describe(self) -> Transformer:
        """Returns the description.

        Raises:
            GossamerError: a size is out of range or contradicts another.
        """
        if type(self.head_dim) is not int or self.head_dim < 1:
            raise GossamerError(f"head_dim must be from 1, got {self.head_dim!r:.80}")
        if type(self.layers) is not int or not 1 <= self.layers <= MOST_LAYERS:
            raise GossamerError(f"layers must be from 1 to {MOST_LAYERS}, got {self.layers!r:.80}")
        norm = Norm("rms", self.norm_eps)
        attention = Attention(
            self.heads,
            self.kv_heads,
            self.head_dim,
            attention_scale(self.head_dim),
            Rope(self.inv_freq, self.rope_scale),
            tuple(name for name in _BIASES["attention_bias"] if name in self.biases),
        )
        mlp = Mlp(self.intermediate, "silu", biases=tuple(name for name in _BIASES["mlp_bias"] if name in self.biases))
        block = Block((Branch(attention, norm), Branch(mlp, norm)))
        stack = Stack((block,), (0,) * self.layers, norm)
        return Transformer(self.hidden, self.vocab, self.context, Embedding(), stack, Head(self.tied))

    @classmethod
    def of(cls, transformer: Transformer) -> Sizes:
        """Returns the fields of a description of this family.

        Raises:
            GossamerError: it describes something else.
        """
        parts = [branch.mixer for branch in transformer.blocks[0].branches]
        norm = transformer.stack.norm
        if len(parts) == 2 and isinstance(parts[0], Attention) and isinstance(parts[1], Mlp) and norm is not None:
            attention, mlp = parts[0], parts[1]
            rope = attention.positions if isinstance(attention.positions, Rope) else Rope(())
            sizes = cls(
                hidden=transformer.hidden,
                layers=transformer.layers,
                heads=attention.heads,
                kv_heads=attention.kv_heads,
                head_dim=attention.head_dim,
                intermediate=mlp.width,
                vocab=transformer.vocab,
                context=transformer.context,
                norm_eps=norm.eps,
                inv_freq=rope.inv_freq,
                rope_scale=rope.scale,
                tied=transformer.tied,
                biases=(*attention.biases, *mlp.biases),
            )
            if sizes.describe() == transformer:
                return sizes
        raise GossamerError("this is no decoder of the Llama family: it has other blocks")


def read_flat(values: Any, biases: tuple[str, ...] = ()) -> Transformer:
    """Builds the description of a packed folder of version 1.

    Args:
        values: What its gossamer.json has as "decoder".
        biases: Linears that have a bias, which only the stored vectors tell.

    Raises:
        GossamerError: a field is unknown, missing, of the wrong type or out of range; the line names it.
    """
    if not isinstance(values, dict) or not isinstance(values.get("inv_freq"), list):
        raise GossamerError("decoder must be an object with a list inv_freq")
    values = dict(values)
    if (activation := values.pop("activation", "silu")) != "silu":
        raise GossamerError(f"decoder: activation must be 'silu', got {activation!r:.80}")
    known = {field.name: field.type for field in fields(Sizes)}
    if unknown := sorted(set(values) - set(known) | set(values) & {"biases"}, key=str):
        raise GossamerError(f"decoder has unknown fields: {', '.join(map(str, unknown)):.80}")
    for name, value in values.items():
        kinds = {"int": (int,), "bool": (bool,), "float": (int, float)}.get(str(known[name]), (list,))
        if type(value) not in kinds:
            raise GossamerError(f"decoder: {name} is of the wrong type: {value!r:.80}")
    try:
        frequencies = tuple(float(value) for value in values.pop("inv_freq"))
        numbers: dict[str, Any] = {
            name: float(value) if known[name] == "float" else value for name, value in values.items()
        }
        return Sizes(**numbers, inv_freq=frequencies, biases=biases).describe()
    except (TypeError, ValueError, OverflowError) as error:
        raise GossamerError(f"decoder: {error}") from None
    except GossamerError as error:
        raise GossamerError(f"decoder: {error}") from None


def _sizes(config: dict[str, Any]) -> Sizes:
    """The sizes alone: nothing here takes memory, so that they can be held against what is stored first."""
    heads = integer(config, "num_attention_heads")
    kv_heads = integer(config, "num_key_value_heads", heads)
    dim = head_dim(config)
    quotient("num_attention_heads", heads, "num_key_value_heads", kv_heads)
    if dim % 2:
        raise GossamerError(f"the width of a head must be even, got {dim}")
    return Sizes(
        hidden=integer(config, "hidden_size"),
        layers=integer(config, "num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        intermediate=integer(config, "intermediate_size"),
        vocab=integer(config, "vocab_size"),
        context=1,
        norm_eps=1.0,
        inv_freq=(),
        tied=flag(config, "tie_word_embeddings"),
        biases=tuple(name for key, names in _BIASES.items() if flag(config, key) for name in names),
    )


def describe(config: dict[str, Any]) -> Transformer:
    """Maps config.json; see `gossamer.arch.Family`."""
    sizes = _sizes(config)
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):  # two names of one function
        raise GossamerError(f"hidden_act {activation!r:.80} is not supported; there is: silu")
    unread(config)
    positions = rotary(config, sizes.head_dim)
    described = replace(
        sizes,
        context=positions.context,
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        inv_freq=positions.inv_freq,
        rope_scale=positions.scale,
    ).describe()
    found = windows(config, lambda _: True, _window(config))
    if _own(config):
        return described
    return each_attention(described, lambda layer, attention: replace(attention, window=found[layer]))


def unread(config: dict[str, Any]) -> list[str]:
    """Looks through the keys; see `gossamer.arch.Family`."""
    heads = integer(config, "num_attention_heads")
    head_dim = integer(config, "head_dim", max(integer(config, "hidden_size") // heads, 1))
    same = {"attention_multiplier": head_dim**-0.5, "query_pre_attn_scalar": head_dim}
    found = keys.unread(config, _KEYS, same=same)
    if _own(config) and _window(config) is not None:
        found.append("sliding_window")
    return found


def _window(config: dict[str, Any]) -> int | None:
    """The sliding window that a config asks for."""
    if not flag(config, "use_sliding_window", True) or config.get("sliding_window") is None:
        return None
    return integer(config, "sliding_window")


def _own(config: dict[str, Any]) -> bool:
    """Whether it is a Llama, whose every layer sees everything in `transformers`, too, and not one of its kin."""
    return bool(config.get("model_type", "llama") == "llama")


def biases(config: dict[str, Any]) -> dict[str, dict[str, Source]]:
    """Lists the biases that there may be; see `gossamer.arch.Family`."""
    every = sources({**config, **dict.fromkeys(_BIASES, True)})
    return {
        key: {name: source for name, source in every.items() if name.split(".")[2:] in [[n, "bias"] for n in names]}
        for key, names in _BIASES.items()
    }


def sources(config: dict[str, Any]) -> dict[str, Source]:
    """Lists the tensors; see `gossamer.arch.Family`."""
    return place(_sizes(config).describe(), ENDS, BLOCKS, INSIDE)


@dataclass(frozen=True)
class Kin:
    """A family that is Llama but for its config's keys and what its attentions have.

    Attributes:
        plain: From its config to the one of Llama that is left of it, with the defaults of the family.
        attention: From its config to what its attentions are, by their layers.
        inside: Stored names of what its blocks have beside those of Llama.
        flags: Keys that announce biases.
    """

    plain: Callable[[dict[str, Any]], dict[str, Any]]
    attention: Callable[[dict[str, Any]], Callable[[int, Attention], Attention]] = lambda _: (
        lambda _, attention: attention
    )
    inside: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def describe(self, config: dict[str, Any]) -> Transformer:
        """Maps config.json; see `gossamer.arch.Family`."""
        return each_attention(describe(self.plain(config)), self.attention(config))

    def unread(self, config: dict[str, Any]) -> list[str]:
        """Looks through the keys; see `gossamer.arch.Family`."""
        return unread(self.plain(config))

    def biases(self, config: dict[str, Any]) -> dict[str, dict[str, Source]]:
        """Lists the biases that there may be; see `gossamer.arch.Family`."""
        return {key: found for key, found in biases(self.plain(config)).items() if key in self.flags}

    def sources(self, config: dict[str, Any]) -> dict[str, Source]:
        """Lists the tensors; see `gossamer.arch.Family`."""
        return place(self.outline(config), ENDS, BLOCKS, {**INSIDE, **self.inside})

    def outline(self, config: dict[str, Any]) -> Transformer:
        """Returns a description of which shapes alone are meant, and for which nothing is computed."""
        return each_attention(_sizes(self.plain(config)).describe(), self.attention(config))
