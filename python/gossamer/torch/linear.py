"""`SparseLinear`: a drop-in for `torch.nn.Linear` that multiplies straight from packed weights."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GossamerError
from ..gpu.cuda import why_unavailable
from ..gpu.dtypes import FLOATS
from ..packing.matrix import Rounded
from ..packing.planner import Choice
from .attachments import marks
from .dense import CONV1D, LINEAR, check_options, dense_parts, kind_of, machine_of, round_layer
from .handles import MAKERS, Product, handle_of, trainable_length
from .layout import STREAMS, Layout, bytes_sum, check_bytes, to_tensors
from .ops import check_input, each_part, nobody_watches, traced
from .stand_in import PackedWeight


class SparseLinear(nn.Module):
    """y = x W^T + b with W packed: compressed in memory, and expanded in registers while it is multiplied.

    Takes float32, bfloat16 and float16 inputs [..., in_features] whatever the type of the stored values, and returns
    outputs of the input's type. float64 inputs are multiplied with expanded float64 weights, for checks.

    Make one with `from_dense`, `gossamer.torch.sparsify` or `gossamer.torch.load`.

    Attributes:
        in_features: Inputs.
        out_features: Outputs.
        layout: What the streams hold, and how inputs are multiplied with them.
        bias: Parameter [out_features], or None.
        name: What errors call the layer; `sparsify` sets the qualified name.
        kind: Qualified name of the class that it stands for, which `desparsify` then makes again.
    """

    values: Tensor
    bias: nn.Parameter | None
    layout_numbers: Tensor
    _like: Tensor
    _stand_in: PackedWeight

    def __init__(
        self,
        layout: Layout,
        streams: dict[str, Tensor],
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        name: str = "",
    ) -> None:
        """Takes packed streams as they are.

        Args:
            layout: What they hold.
            streams: Byte vectors by name; "values" may be a float vector instead, which is trained then.
            bias: [out_features].
            dtype: The float type that the layer counts as having.
            name: See the class.

        Raises:
            ValueError: a stream is missing or unknown.
        """
        super().__init__()
        self.in_features, self.out_features = layout.cols, layout.rows
        self.name = name
        self.kind = LINEAR
        device = streams["values"].device if "values" in streams else None
        self._set_streams(layout, streams)
        numbers = [*layout.numbers(), bytes_sum(self._fixed_streams())]
        self.register_buffer("layout_numbers", torch.tensor(numbers, dtype=torch.int64, device=device))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, bias.requires_grad))
        # Converted with the module, and so always of the type that a dense layer in its place would have.
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self._stand_in = self._make_stand_in()

    def _set_streams(self, layout: Layout, streams: dict[str, Tensor]) -> None:
        if set(streams) != {"values", *layout.index}:
            raise ValueError(
                f"format {layout.format} of {layout.type} has the streams {', '.join(('values', *layout.index))}, "
                f"got {', '.join(streams)}"
            )
        for name in STREAMS:
            self._buffers.pop(name, None)
            self._parameters.pop(name, None)
        values = streams["values"]
        if values.is_floating_point():
            self.register_parameter("values", nn.Parameter(values))
        else:
            self.register_buffer("values", values)
        for name in layout.index:
            self.register_buffer(name, streams[name])
        self.layout = layout
        self._numbers = layout.numbers()

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        format: str = "auto",
        weights: str = "auto",
        *,
        group: int = 64,
        activations: str = "auto",
        trainable: bool = False,
        name: str = "",
    ) -> SparseLinear:
        """Packs a dense layer.

        Args:
            linear: A `torch.nn.Linear`, or one of transformers: a `FalconLinear`, or a `Conv1D`, whose weight lies
                transposed.
            format: One of `gossamer.formats.FORMATS`, or "auto": the fastest here by estimate.
            weights: Type of the stored values: "f32", "bf16", "f16", "int8", "int4", or "auto": the layer's own, so
                that the values are exactly those of the layer.
            group: Inputs that a scale of integer values serves: 32, 64, 128, or 0 for a whole row.
            activations: How inputs are multiplied; see `Layout`.
            trainable: Whether the values that are not zero can be trained; format "bitmap" and a float type then.
            name: What errors call the layer.

        Raises:
            TypeError: it is no plain linear layer, or its weight is of a type that cannot be stored.
            GossamerError: the layer is on a GPU that cannot be used.
            ValueError: an option is unknown, or the weight holds NaN or has no values (meta).
        """
        check_options(format, weights, group, activations, trainable)
        weight, bias = dense_parts(linear, name)
        rounded = round_layer(weight, weights, group, name or "weight")
        choice = rounded.choose(format, machine_of(weight.device))
        layer = pack_layer(rounded, choice, weight, bias, activations=activations, trainable=trainable, name=name)
        layer.kind = kind_of(linear)
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """Returns a `torch.nn.Linear` with the stored values, scales applied."""
        dtype, device = self._like.dtype, self.values.device
        weight = self._handle().expand(0, self.out_features, dtype).to(device, copy=True)  # a handle may keep its own
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(weight, self.trainable)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().to(dtype).clone(), self.bias.requires_grad)
        return linear.train(self.training)

    @property
    def trainable(self) -> bool:
        """Whether the stored values are a parameter."""
        return "values" in self._parameters

    @property
    def weight(self) -> Tensor:
        """A tensor without values: the shape, type and device that a dense layer's weight would have.

        Models ask for these; whatever needs the values, or writes them, raises `GossamerError`. `to_dense().weight` has
        them.
        """
        found = self._stand_in
        if (
            found.dtype != self._like.dtype
            or found.device != self.values.device
            or found.requires_grad != self._learns()
            or found.shape != self._weight_shape()
            or found.title != self._weight_title()
        ):
            found = self._stand_in = self._make_stand_in(marks(found))
        return found

    @weight.setter
    def weight(self, value: object) -> None:
        del value
        raise self._fixed()

    def _make_stand_in(self, marked: dict[str, Any] | None = None) -> PackedWeight:
        kind = self._like.dtype, self.values.device
        made = PackedWeight(self._weight_shape(), *kind, self._learns(), self._weight_title())
        vars(made).update(marked or {})
        return made

    def _weight_shape(self) -> tuple[int, int]:
        return (self.in_features, self.out_features) if self.kind == CONV1D else (self.out_features, self.in_features)

    def _weight_title(self) -> str:
        return f"{self._title()}.weight"

    def _fixed(self) -> GossamerError:
        return GossamerError(
            f"{self._weight_title()}: a packed weight cannot be replaced; make the layer dense (to_dense, desparsify) "
            "and pack it again"
        )

    def requires_grad_(self, requires_grad: bool = True) -> SparseLinear:
        """Has the layer's parameters learn or not, as for any module.

        Raises:
            GossamerError: the layer, and not some model around it, is to learn, and its values do not.
        """
        if requires_grad and not self.trainable:
            raise GossamerError(
                f"{self._title()}: packed values do not learn; pack it with trainable=True, or leave it dense (exclude)"
            )
        return super().requires_grad_(requires_grad)

    def reset_parameters(self) -> None:
        """Raises: packed values are not drawn anew."""
        raise self._fixed()

    def _learns(self) -> bool:
        return self.trainable and self.values.requires_grad

    def __delattr__(self, name: str) -> None:
        """Refuses to take a part of the packed weight away, as parametrizations do."""
        if name in STREAMS or name == "layout_numbers":
            raise GossamerError(
                f"{self._title()}: {name} is part of a packed weight, and nothing can be put in its place "
                "(parametrizations, masks); make the layer dense first (to_dense, desparsify)"
            )
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuses a weight beside the packed one."""
        if name == "weight":
            raise self._fixed()
        super().register_parameter(name, param)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the tensor that stands for the weight; what users set on that stays."""
        state = {key: value for key, value in self.__dict__.items() if key != "_stand_in"}
        return {**state, "_marks": marks(self._stand_in)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over what `__getstate__` gave."""
        marked = state.pop("_marks", {})
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._stand_in = self._make_stand_in(marked)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed streams, which is what a token reads."""
        return sum(t.numel() * t.element_size() for t in (self.values, *self._index()))

    def _index(self) -> list[Tensor]:
        buffers = self._buffers
        return [buffers[name] for name in self.layout.index]  # type: ignore[misc]

    def _fixed_streams(self) -> list[Tensor]:
        return self._index() or [self.values]  # values beside an index may be written to

    def _handle(self) -> Product:
        try:
            return handle_of(self.values, self._index(), self._numbers, self._check_bytes)
        except (ValueError, GossamerError) as error:
            raise type(error)(f"{self._title()}: {error}") from None

    def _check_bytes(self, begin: str = "") -> None:
        if nobody_watches(self.values.detach()):
            check_bytes(self.layout_numbers, self._numbers, self._fixed_streams(), begin)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Refuses to save bytes that are no weight; has a dense layer stumble over what is saved, strict or not."""
        self._check_bytes(f"{self._title()}: ")
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.layout_numbers.is_meta:  # a loader that makes the model first asks it what to look for
            destination[f"{prefix}weight"] = self.layout_numbers.clone()  # which has no weight's shape

    def _title(self) -> str:
        return self.name or f"SparseLinear({self.in_features}, {self.out_features})"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in torch.nn.Linear, which is called by that name
        """Returns x W^T + b.

        Args:
            input: [..., in_features], float32, bfloat16 or float16; any number of leading dimensions, any strides.

        Returns:
            [..., out_features], of the input's type; under autocast of its type.

        Raises:
            TypeError: it is no tensor of a float type.
            ValueError: its last dimension is not in_features, or it lies on a device that the layer cannot run on.
        """
        x = input
        if not isinstance(x, Tensor):
            return traced(self, x)  # type: ignore[unreachable]
        if getattr(x, "is_nested", False):
            return each_part(self, x)
        check_input(self, x)
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        bias = self.bias
        if not torch.compiler.is_compiling() and nobody_watches(x):
            handle = self._handle()
            learns = x.requires_grad or self.values.requires_grad or (bias is not None and bias.requires_grad)
            if not (learns and torch.is_grad_enabled()):
                return handle.multiply(x, bias, self.layout.activations)
        return torch.ops.gossamer.linear(x, self.values, self._index(), self._numbers, bias)  # type: ignore[no-any-return]

    def __prepare_scriptable__(self) -> Any:
        """Refuses what TorchScript, which torch no longer develops, asks of each module before it compiles it."""
        raise GossamerError(
            f"{self._title()}: torch.jit.script compiles no packed layers; torch.jit.trace, torch.export and "
            "torch.compile take them"
        )

    def _apply(self, *arguments: Any, **options: Any) -> SparseLinear:
        """Moves and converts; on a GPU the kernels' own copy is made here, and not in a call that is captured."""
        if arguments[0](torch.empty(0, dtype=torch.uint8, device="cpu")).dtype != torch.uint8:
            raise TypeError(f"{self._title()}: type() makes numbers of packed bytes; to(dtype) leaves them alone")
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        self._stand_in = self._make_stand_in(marks(self._stand_in))
        self._prepare()
        return self

    def _prepare(self) -> None:
        """Makes the handle of a layer on a GPU, unless its streams are still those that `to_empty` leaves."""
        values = self.values.detach()
        if values.device.type == "cuda" and nobody_watches(values) and why_unavailable() is None:
            with contextlib.suppress(ValueError):  # told by the first call
                self._handle()

    def extra_repr(self) -> str:
        """Returns what `print(module)` shows."""
        layout = self.layout
        pattern = f", {layout.pattern[0]}:{layout.pattern[1]}" if layout.pattern else ""
        return (
            f"in_features={layout.cols}, out_features={layout.rows}, bias={self.bias is not None}, "
            f"format={layout.format}{pattern}, weights={layout.type}{', trainable' if self.trainable else ''}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **options: Any) -> None:
        """Takes over streams of another size or format, as long as the matrix is of the same shape."""
        numbers = state_dict.get(f"{prefix}layout_numbers")
        if state_dict.pop(f"{prefix}weight", self.layout_numbers).dim() != 1:  # not that of a packed layer
            raise GossamerError(
                f"{self._weight_title()}: the state holds a dense weight, and the layer is packed; "
                "load it before the model is sparsified, or go back first (desparsify)"
            )
        whole = False
        if numbers is not None:
            if len(numbers) < len(self.layout_numbers):  # of states without a checksum
                numbers = state_dict[f"{prefix}layout_numbers"] = torch.cat((numbers, numbers.new_zeros(1)))
            layout = Layout.from_numbers([int(n) for n in numbers.tolist()])
            if (layout.rows, layout.cols) != (self.out_features, self.in_features):
                raise ValueError(
                    f"{prefix[:-1] or self._title()}: the saved layer is {layout.rows} x {layout.cols}, "
                    f"this one {self.out_features} x {self.in_features}"
                )
            streams = {name: state_dict.get(prefix + name) for name in ("values", *layout.index)}
            found = {name: stream for name, stream in streams.items() if isinstance(stream, Tensor)}
            same = layout == self.layout and all(
                getattr(self, name).shape == stream.shape and getattr(self, name).dtype == stream.dtype
                for name, stream in found.items()
            )
            whole = len(found) == len(streams)
            if whole and not same:  # otherwise an optimizer may know the tensors
                device = self.values.device
                self._set_streams(layout, {key: torch.empty_like(s, device=device) for key, s in found.items()})
        before = self.bias
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)
        if self.bias is not None and before is not None and self.bias.dtype != before.dtype:
            self._like = self._like.to(self.bias.dtype)  # assigned, as a dense layer's weight would be
        values = self.values.detach()
        if whole and values.device.type in MAKERS and nobody_watches(values):
            self._handle()  # streams that contradict each other are refused here
        self._prepare()


def pack_layer(
    rounded: Rounded,
    choice: Choice,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activations: str = "auto",
    trainable: bool = False,
    name: str = "",
) -> SparseLinear:
    """Packs a rounded weight as it was chosen, a trainable one as a bitmap, and puts it where the dense one lies."""
    if trainable and choice.format != "bitmap":
        choice = rounded.choose("bitmap")
    packed = rounded.pack(choice)
    layout, streams = Layout.of(packed, activations), to_tensors(packed)
    if trainable:
        dtype = FLOATS[rounded.type]
        values = torch.zeros(trainable_length(packed.nnz), dtype=dtype, device="cpu")
        values[: packed.nnz] = streams["values"][: packed.nnz * dtype.itemsize].view(dtype)
        streams["values"] = values
    return SparseLinear(layout, streams, bias, dtype=weight.dtype, name=name).to(weight.device)


OWN = frozenset(
    {*dir(SparseLinear), *STREAMS, "name", "kind", "layout", "layout_numbers", "_numbers", "_like", "_stand_in"}
)
"""Names that mean something in a packed layer."""
