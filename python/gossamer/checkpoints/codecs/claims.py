"""What a config says of quantization: checked against the tensors that are there, and never trusted.

No text of a config is looked up anywhere but in the tables here. Patterns of modules' names are not run at all: which
form a tensor has shows in its parts, and of numbers that the parts leave open the one that fits is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import GossamerError
from ...files import read_json
from .tensor import Tensor

# The forms whose tensors a method may go with.
_METHODS = {
    "compressed-tensors": {"sparse", "scaled", "pack-quantized", "fp4", "marlin-24"},
    "gptq": {"gptq"},
    "awq": {"awq"},
    "bitsandbytes": {"bitsandbytes"},
    "fp8": {"scaled"},
    "fbgemm_fp8": {"scaled"},
    "modelopt": {"scaled", "fp4"},
    "mxfp4": {"mxfp4"},
    "torchao": {"torchao"},
}
_FORMATS = (
    "dense",
    "fakequant",
    "float-quantized",
    "int-quantized",
    "marlin-24",
    "mixed-precision",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "pack-quantized",
    "sparse-24-bitmask",
    "sparse-bitmask",
)
_STATUSES = ("compressed", "frozen", "decompressed")
_OFFLINE = ("weight_input", "weight_output")  # rotations that are in the weights already
# GPTQModel's, of all its methods: what is added to products, and what weights and inputs are turned by.
_OTHER_MATHEMATICS = ("adapter", "rotation")
_UNSAID = {"sparse", "masked"}  # what no method is needed for
_BITS = range(1, 33)
_MOST_GROUP = 1 << 20
_SCHEMES = 1000  # a config may have


class Claims:
    """What a folder's files say.

    Attributes:
        path: The file that says it.
        method: One of the methods of the table; None where nothing is said.
        settings: The object that says it; empty where there is none.
        notes: What was left out, in words.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Reads what the config says.

        Raises:
            GossamerError: it asks for what there is not.
        """
        self.path = folder / "config.json"
        self.notes: list[str] = []
        self._forms: set[str] = set()
        self.settings = self._object(config)
        if not self.settings and (folder / "quantize_config.json").is_file():  # of the first GPTQ programs
            self.path = folder / "quantize_config.json"
            self.settings = {"quant_method": "gptq", **read_json(self.path)}
        self.method: str | None = None
        if self.settings:
            self.method = self._word("quant_method", self.settings.get("quant_method", "compressed-tensors"), _METHODS)
        sparsity = config.get("sparsity_config") or self.settings.get("sparsity_config")
        self.sparse = isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense")
        if isinstance(sparsity, dict) and sparsity.get("format") is not None:
            self._word("sparsity_config.format", sparsity["format"], _FORMATS)
        for key in _OTHER_MATHEMATICS:
            if self.settings.get(key) is not None:
                raise GossamerError(
                    f"{self.path}: {key} of its quantization is not supported, got {self.settings[key]!r:.80}"
                )
        if self.method == "compressed-tensors":
            self._check_compressed_tensors()

    def _object(self, config: dict[str, Any]) -> dict[str, Any]:
        text = config.get("text_config")
        for where in (config, text if isinstance(text, dict) else {}):
            for key in ("quantization_config", "compression_config"):
                found = where.get(key)
                if found is not None and not isinstance(found, dict):
                    raise GossamerError(f"{self.path}: {key} must be an object, got {found!r:.80}")
                if found:
                    return found
        return {}

    def _word(self, key: str, value: Any, allowed: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise GossamerError(
                f"{self.path}: {key} {value!r:.80} of its quantization is not supported; there are: "
                f"{', '.join(sorted(allowed))}"
            )
        return value

    def _check_compressed_tensors(self) -> None:
        if self.settings.get("format") is not None:
            self._word("format", self.settings["format"], _FORMATS)
        if self.settings.get("quantization_status") is not None:
            self._word("quantization_status", self.settings["quantization_status"], _STATUSES)
        for scheme in self.schemes():
            if scheme.get("format") is not None:
                self._word("format", scheme["format"], _FORMATS)
        for group in _objects(self.settings.get("transform_config"), "config_groups"):
            for apply in group["apply"] if isinstance(group.get("apply"), list) else [group]:
                location = apply.get("location") if isinstance(apply, dict) else apply
                if location not in _OFFLINE:
                    raise GossamerError(
                        f"{self.path}: transform_config asks for a transform at {location!r:.80} while the model runs, "
                        "which is not supported"
                    )

    def schemes(self) -> Iterator[dict[str, Any]]:
        """Returns the groups of compressed-tensors' config that are objects."""
        return _objects(self.settings, "config_groups")

    def numbers(self, *keys: str) -> list[int]:
        """Returns the values that keys have anywhere in the settings, smallest first."""
        weights = (scheme["weights"] for scheme in self.schemes() if isinstance(scheme.get("weights"), dict))
        found = {place.get(key) for place in (self.settings, *weights) for key in keys if _is_number(place.get(key))}
        return sorted(value for value in found if isinstance(value, int) and value <= _MOST_GROUP)

    def group(self, scale: Tensor, cols: int, groups: int) -> int:
        """Returns how many inputs a scale serves; 0 is all of them.

        Args:
            scale: The scales.
            cols: Inputs.
            groups: Scales a row.

        Raises:
            GossamerError: no number fits, or several do.
        """
        if groups == 1:
            return 0
        said = self.numbers("group_size", "q_group_size")
        fit = [size for size in said if -(-cols // size) == groups]
        if not said and groups and not cols % groups:
            fit = [cols // groups]
        if len(fit) != 1:
            words = f"group_size {' or '.join(map(str, said))}" if said else "groups of one size"
            raise scale.bad(f"has {groups} scales a row, which does not fit {cols} inputs and {words}")
        return fit[0]

    def blocks(self) -> list[tuple[int, int]]:
        """Returns the sizes of blocks, (rows, cols), that one scale serves."""
        weights = (scheme["weights"] for scheme in self.schemes() if isinstance(scheme.get("weights"), dict))
        found = []
        for place in (self.settings, *weights):
            sizes = place.get("weight_block_size") or place.get("block_structure")
            if isinstance(sizes, str):
                sizes = [int(size) if size.isascii() and size.isdecimal() else 0 for size in sizes[:20].split("x")]
            if isinstance(sizes, list) and len(sizes) == 2 and all(map(_is_number, sizes)):
                found.append((sizes[0], sizes[1]))
        return found

    def bits(self, tensor: Tensor, fit: list[int]) -> int:
        """Returns the one number of bits that fits a tensor's shape and what the config says.

        Args:
            tensor: The packed tensor.
            fit: Those that fit its shape.

        Raises:
            GossamerError: none fits both, or several do.
        """
        said = [bits for bits in self.numbers("num_bits", "bits", "w_bit") if bits in _BITS]
        both = [bits for bits in fit if not said or bits in said]
        if len(both) != 1:
            words = f"{' or '.join(map(str, said))} bits, as the config has them" if said else "one number of bits"
            raise tensor.bad(f"has shape {list(tensor.shape)}, which does not fit {words}")
        return both[0]

    def found(self, form: str) -> None:
        """Notes that tensors of a form are there."""
        self._forms.add(form)

    def conclude(self) -> None:
        """Holds what was found against what is said, and adds notes where they differ in what does no harm.

        Raises:
            GossamerError: the tensors have a form that does not go with the method.
        """
        quantized = self._forms - _UNSAID
        if self.method is not None and (other := quantized - _METHODS[self.method]):
            raise GossamerError(
                f"{self.path}: says that weights are quantized by {self.method}, and the tensors have the form "
                f"{min(other)}"
            )
        if self.method is not None and not self._forms and self.settings.get("format") != "dense":
            self.notes.append(f"{self.path}: speaks of {self.method}, and no tensor is so; they are read as they are")
        elif self.sparse and "sparse" not in self._forms:
            self.notes.append(f"{self.path}: speaks of sparse tensors, and none is stored so")
        if self.method is None and quantized:
            self.notes.append(f"{self.path}: speaks of no quantization; the tensors have the form {min(quantized)}")


def _objects(place: Any, key: str) -> Iterator[dict[str, Any]]:
    groups = place.get(key) if isinstance(place, dict) else None
    values = groups.values() if isinstance(groups, dict) else groups if isinstance(groups, list) else ()
    return (group for group in list(values)[:_SCHEMES] if isinstance(group, dict))


def _is_number(value: Any) -> bool:
    return type(value) is int and value > 0
