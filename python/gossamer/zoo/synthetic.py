"""Models in the shape of real ones with random weights: what they weigh and how fast they run, without a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import arch
from ..checkpoints import Checkpoint
from ..errors import GossamerError
from ..generation.ready import ready
from ..machine.memory import available_memory as _available_memory
from ..machine.memory import copies
from ..progress import Progress
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..generation.model import Model
    from ..packing.folder import PackedModel
    from ..pruning import Target

DEFAULT_SPARSITY = 0.5

_LLAMA: dict[str, Any] = {"model_type": "llama", "rms_norm_eps": 1e-5}
# Sizes as in config.json. Frequencies of the positions cost the same whatever they are, so none is scaled.
CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        **_LLAMA,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        **_LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "llama-2-7b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    "mixtral-4-layers": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 4,  # of 32
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
}

# No magnitude is under a quarter of the largest, so that rounding to 4 bits makes no zeros beside those asked for.
_VALUES = np.linspace(0.25, 1.0, 128, dtype=np.float32)
_VALUES = np.concatenate([-_VALUES, _VALUES]) / np.sqrt(np.mean(_VALUES**2))

_PACKING_BYTES = 10  # for a value that is being packed: float32, its codes, and the search for zeros


def config(name: str) -> dict[str, Any]:
    """Returns the content of config.json of a named model, with what speed depends on.

    Raises:
        GossamerError: there is no such name.
    """
    try:
        return CONFIGS[name]
    except KeyError:
        raise GossamerError(f"there is no synthetic model {name!r}; there are: {', '.join(CONFIGS)}") from None


def model(name: str, *, threads: int = 0, kv: str = "f32", activations: str = "auto", **options: Any) -> Model:
    """Makes a model that is ready to run; its text is noise.

    Args:
        name: One of `CONFIGS`.
        threads: As for `gossamer.load`, as are the next two.
        kv: Type of cached keys and values.
        activations: Type that inputs of linears are rounded to.
        **options: As for `pack`.

    Raises:
        GossamerError: an option is not usable, or memory does not suffice.
    """
    return ready(pack(name, **options), threads=threads, kv=kv, activations=activations)


def pack(
    name: str,
    *,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    weights: str = "auto",
    group: int = 64,
    format: str = "auto",
    head: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> PackedModel:
    """Packs random weights in the shape of a named model.

    One block is drawn and packed, and every other block is a copy of it in memory of its own: a token reads as many
    bytes from as many places as with real weights.

    Args:
        name: One of `CONFIGS`.
        sparsity: Fraction of zeros in every matrix of the blocks, at random places; 0.5 where no pattern is given.
        pattern: (N, M) instead: N of every M inputs of a row are kept, at random places.
        weights: As for `gossamer.convert`, as are the next three.
        group: Inputs a scale.
        format: Format of the blocks' matrices.
        head: Type of embedding and head, which are dense.
        seed: The same seed draws the same weights.
        progress: Called with (done, total, what).

    Raises:
        GossamerError: an option is not usable, or memory does not suffice.
    """
    from ..packing.convert import pack_checkpoint
    from ..packing.planner import here
    from ..pruning import Target

    sizes = config(name)
    if sparsity is None and pattern is None:
        sparsity = DEFAULT_SPARSITY
    target = Target.parse(sparsity, pattern)
    block = _RandomBlock(name, sizes, target, seed)
    largest = max(int(np.prod(block.shape(tensor))) for tensor in block.names())
    _check_memory(name, largest * _PACKING_BYTES)
    layers = sizes["num_hidden_layers"]
    whole = arch.family(sizes).describe(block.config).deeper(layers)
    packed = pack_checkpoint(
        block,
        weights=weights,
        group=group,
        format=format,
        head=head,
        machine=here(progress, whole.positions),
        progress=progress,
    )
    first = {key.removeprefix("layers.0."): weight for key, weight in packed.weights.items() if "." in key}
    _check_memory(name, (layers - 1) * sum(weight.nbytes for weight in first.values()))
    vectors = {key.removeprefix("layers.0."): vector for key, vector in packed.vectors.items() if "." in key}
    others = {key: copies(weight, layers - 1) for key, weight in first.items()}
    for layer in range(1, layers):
        if progress:
            progress(layer, layers, "copying blocks")
        own = f"layers.{layer}."
        packed.weights.update((own + key, next(copy)) for key, copy in others.items())
        packed.reasons.update((own + key, packed.reasons[f"layers.0.{key}"]) for key in first)
        packed.vectors.update((own + key, vector) for key, vector in vectors.items())
    if progress:
        progress(layers, layers, "copying blocks")
    packed.info["config"] |= {"num_hidden_layers": layers}
    packed.info["synthetic"] = {"sparsity": target.sparsity, "pattern": target.pattern, "seed": seed}
    return replace(packed, config=packed.config.deeper(layers))


class _RandomBlock(Checkpoint):
    """A checkpoint of one block, embedding and head, whose values are drawn when they are read."""

    def __init__(self, name: str, config: dict[str, Any], target: Target, seed: int) -> None:
        self.path = Path(name)
        self.config = {**config, "num_hidden_layers": 1}
        self._target = target
        self._seed = seed
        family = arch.family(self.config)
        sources, described = family.sources(self.config), family.describe(self.config)
        self._shapes = {source.tensor: source.shape for source in sources.values()}
        self._pruned = {source.tensor for name, source in sources.items() if name in described.linears}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:  # noqa: ARG002 - all are alike
        return "f32"

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Norms of one; else values whose products keep the size of the inputs."""
        from ..pruning.masks import keep_fraction, keep_pattern

        shape = self._shapes[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        random = np.random.default_rng([self._seed, self.names().index(name)])
        scale = np.float32(1 / np.sqrt(shape[1]))
        values: NDArray[np.float32] = (_VALUES * scale)[random.integers(0, len(_VALUES), shape, np.uint8)]
        if name in self._pruned:
            scores = random.random(shape, np.float32)
            pattern = self._target.pattern
            keep = keep_pattern(scores, pattern) if pattern else keep_fraction(scores, self._target.zeros(scores.size))
            values[~keep] = 0
        return values

    def tokenizer(self) -> Tokenizer:
        """One that knows a single token, since there is no text."""
        import tokenizers

        return Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?")))

    def copy_companions(self, dst: Path) -> None:
        self.tokenizer().save(dst)


def _check_memory(name: str, needed: int) -> None:
    """Refuses what would end in swapping or in the process being killed."""
    available = _available_memory()
    if available is not None and needed > available:
        raise GossamerError(
            f"synthetic {name}: needs {needed / 1e9:.1f} GB of memory more, and {available / 1e9:.1f} GB are available"
        )
