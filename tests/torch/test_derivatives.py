"""Derivatives and batches of packed layers beside those of the dense ones, by everything in torch that makes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, func, nn  # noqa: E402
from torch.autograd import forward_ad, functional  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from gossamer.torch import SparseLinear  # noqa: E402
from torch_layers import pruned, random  # noqa: E402

ROWS, COLS = 20, 30
Layer = Callable[[Tensor], Tensor]
X, ONE, TANGENT = random(4, COLS), random(COLS, seed=3), random(4, COLS, seed=9)
BIASES = random(4, ROWS, seed=8)


def squares(layer: Layer) -> Layer:
    return lambda x: layer(x).square().sum()


def cubes(layer: Layer) -> Layer:
    return lambda x: layer(x).pow(3).sum()


def with_bias(layer: nn.Module, bias: Tensor, x: Tensor) -> Tensor:
    return func.functional_call(layer, {"bias": bias}, (x,))


def tangent(layer: Layer, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, TANGENT))).tangent


def tangent_of_bias(layer: nn.Module) -> Tensor:
    with forward_ad.dual_level():
        bias = forward_ad.make_dual(layer.bias.detach(), BIASES[0])
        return forward_ad.unpack_dual(with_bias(layer, bias, X)).tangent


def batched_gradients(layer: Layer) -> Tensor:
    x = X.clone().requires_grad_()
    units = torch.eye(4 * ROWS).view(-1, 4, ROWS)
    return torch.autograd.grad(layer(x), x, units, is_grads_batched=True)[0]


def without_gradients(run: Callable[[Layer], Tensor]) -> Callable[[Layer], Tensor]:
    def inside(layer: Layer) -> Tensor:
        with torch.no_grad():
            return run(layer)

    return inside


def compiled(run: Layer, *inputs: Tensor) -> Tensor:
    torch.compiler.reset()
    return torch.compile(run, backend="aot_eager", fullgraph=True)(*inputs)


def exported(layer: nn.Module) -> nn.Module:
    return torch.export.export(nn.Sequential(layer), (X,)).module()


OF_INPUTS: dict[str, Callable[[nn.Module], Tensor]] = {
    "grad": lambda f: func.grad(squares(f))(X),
    "vjp": lambda f: func.vjp(f, X)[1](random(4, ROWS))[0],
    "jvp": lambda f: func.jvp(f, (X,), (TANGENT,))[1],
    "jacrev": lambda f: func.jacrev(f)(ONE),
    "jacfwd": lambda f: func.jacfwd(f)(ONE),
    "hessian": lambda f: func.hessian(cubes(f))(ONE),
    "reverse over reverse": lambda f: func.jacrev(func.jacrev(cubes(f)))(ONE),
    "reverse over forward": lambda f: func.jacrev(func.jacfwd(cubes(f)))(ONE),
    "forward over forward": lambda f: func.jacfwd(func.jacfwd(cubes(f)))(ONE),
    "third order": lambda f: func.jacfwd(func.hessian(lambda x: f(x)[:3].pow(3).sum()))(ONE),
    "linearize": lambda f: func.linearize(f, X)[1](TANGENT),
    "functionalized gradient": lambda f: func.functionalize(func.grad(squares(f)))(X),
    "vmap": lambda f: func.vmap(f)(X),
    "vmap over the last dimension": lambda f: func.vmap(f, in_dims=-1, out_dims=-1)(X.t()),
    "vmap of vmap": lambda f: func.vmap(func.vmap(f))(random(2, 3, COLS)),
    "vmap of sequences": lambda f: func.vmap(f, in_dims=1)(random(2, 3, 4, COLS)),
    "vmap of gradients": lambda f: func.vmap(func.grad(squares(f)))(X),
    "gradient of vmap": lambda f: func.grad(lambda x: func.vmap(f)(x).square().sum())(X),
    "gradients of the bias by input": lambda f: func.vmap(
        func.grad(lambda bias, x: with_bias(f, bias, x).square().sum()), in_dims=(None, 0)
    )(f.bias.detach(), X),
    "biases by input": lambda f: func.vmap(lambda bias, x: with_bias(f, bias, x))(BIASES, X),
    "biases for one input": lambda f: func.vmap(lambda bias, x: with_bias(f, bias, x), in_dims=(1, None))(
        BIASES.t(), X
    ),
    "dual numbers": lambda f: tangent(f, X),
    "dual numbers without gradients": without_gradients(lambda f: tangent(f, X)),
    "dual numbers with gradients": lambda f: tangent(f, X.clone().requires_grad_()).detach(),
    "dual bias": tangent_of_bias,
    "gradients in a batch": batched_gradients,
    "vectorized jacobian": lambda f: functional.jacobian(f, ONE, vectorize=True),
    "forward jacobian": lambda f: functional.jacobian(f, ONE, vectorize=True, strategy="forward-mode"),
    "vectorized hessian": lambda f: functional.hessian(cubes(f), ONE, vectorize=True),
    "traced gradient": lambda f: make_fx(func.grad(squares(f)))(torch.zeros_like(X))(X),
    "traced vmap": lambda f: make_fx(func.vmap(f))(torch.zeros_like(X))(X),
    "compiled gradient": lambda f: compiled(func.grad(squares(f)), X),
    "compiled vmap": lambda f: compiled(func.vmap(f), X),
    "compiled jvp": lambda f: compiled(lambda x, t: func.jvp(f, (x,), (t,))[1], X, TANGENT),
    "exported gradient": lambda f: func.grad(squares(exported(f)))(X),
    "exported jvp": lambda f: func.jvp(exported(f), (X,), (TANGENT,))[1],
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's tracers use what torch deprecates
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # so does its linearize
@pytest.mark.parametrize("name", OF_INPUTS)
def test_derivatives_and_batches_of_inputs_are_those_of_the_dense_layer(name: str) -> None:
    linear = pruned(ROWS, COLS)
    run = OF_INPUTS[name]
    wanted = run(linear)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(run(SparseLinear.from_dense(linear, "bitmap")), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["dense", "csr", "nm"])
@pytest.mark.parametrize("name", ["hessian", "vmap of gradients", "dual numbers", "gradients in a batch"])
def test_every_format_has_derivatives(name: str, format: str) -> None:
    linear = pruned(ROWS, COLS)
    torch.testing.assert_close(
        OF_INPUTS[name](SparseLinear.from_dense(linear, format)), OF_INPUTS[name](linear), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_tangents_are_multiplied_with_the_stored_weight_unrounded(weights: str) -> None:
    layer = SparseLinear.from_dense(pruned(ROWS, COLS), "bitmap", weights)
    stored = layer.to_dense().requires_grad_(False)
    torch.testing.assert_close(tangent(layer, X), TANGENT @ stored.weight.t(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(func.jacfwd(layer)(ONE), stored.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(func.jacrev(layer)(ONE), stored.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_go_through_all_of_it(dtype: torch.dtype) -> None:
    linear = pruned(ROWS, COLS, dtype=dtype)
    layer = SparseLinear.from_dense(linear, "bitmap")
    for run in (
        lambda f: func.vmap(func.grad(lambda x: f(x).sum()))(X.to(dtype)),
        lambda f: func.jvp(f, (X.to(dtype),), (TANGENT.to(dtype),))[1],
        lambda f: func.vmap(lambda bias, x: with_bias(f, bias, x))(BIASES.to(dtype), X.to(dtype)),
    ):
        assert run(layer).dtype == dtype
        torch.testing.assert_close(run(layer), run(linear), rtol=2e-2, atol=2e-2)


class Values:
    """A trainable layer as a function of its values, and the same in dense operators."""

    def __init__(self) -> None:
        linear = pruned(ROWS, COLS)
        self.layer = SparseLinear.from_dense(linear, trainable=True)
        self.count = int((linear.weight != 0).sum())
        self.places = self.layer._handle().places(0, self.count)
        self.start = self.layer.values.detach().clone()
        self.tangent = torch.zeros_like(self.start)
        self.tangent[: self.count] = random(self.count, seed=7)
        self.several = torch.stack([self.start, 2 * self.start, self.start - 1])

    def ours(self, values: Tensor, x: Tensor) -> Tensor:
        return func.functional_call(self.layer, {"values": values}, (x,))

    def theirs(self, values: Tensor, x: Tensor) -> Tensor:
        weight = torch.zeros(ROWS * COLS).index_put((self.places,), values[: self.count]).view(ROWS, COLS)
        return nn.functional.linear(x, weight, self.layer.bias.detach())


def twice(f: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    values = values.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(values, X).pow(3).sum(), values, create_graph=True)
    return torch.autograd.grad(first.pow(2).sum(), values)[0]


def batched_gradients_of_values(f: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    values = values.clone().requires_grad_()
    units = torch.eye(4 * ROWS).view(-1, 4, ROWS)
    return torch.autograd.grad(f(values, X), values, units, is_grads_batched=True)[0]


OF_VALUES: dict[str, Callable[[Values, Callable[[Tensor, Tensor], Tensor]], Tensor]] = {
    "grad": lambda v, f: func.grad(lambda w: f(w, X).square().sum())(v.start),
    "jvp": lambda v, f: func.jvp(lambda w: f(w, X), (v.start,), (v.tangent,))[1],
    "jacrev": lambda v, f: func.jacrev(lambda w: f(w, ONE))(v.start),
    "jacfwd": lambda v, f: func.jacfwd(lambda w: f(w, ONE))(v.start),
    "hessian": lambda v, f: func.hessian(lambda w: f(w, ONE).pow(3).sum())(v.start),
    "reverse over reverse": lambda v, f: func.jacrev(func.jacrev(lambda w: f(w, ONE).pow(3).sum()))(v.start),
    "by values and inputs": lambda v, f: func.jacfwd(lambda w: func.grad(lambda x: f(w, x).pow(3).sum())(ONE))(v.start),
    "by inputs and values": lambda v, f: func.jacrev(lambda x: func.grad(lambda w: f(w, x).pow(3).sum())(v.start))(ONE),
    "by input": lambda v, f: func.vmap(func.grad(lambda w, x: f(w, x).square().sum()), (None, 0))(v.start, X),
    "several layers": lambda v, f: func.vmap(f, (0, None))(v.several, X),
    "gradients of several layers": lambda v, f: func.vmap(func.grad(lambda w, x: f(w, x).square().sum()), (0, None))(
        v.several, X
    ),
    "twice backward": lambda v, f: twice(f, v.start),
    "gradients in a batch": lambda v, f: batched_gradients_of_values(f, v.start),
}


@pytest.mark.parametrize("name", OF_VALUES)
def test_derivatives_of_trainable_values_are_those_of_the_dense_layer(name: str) -> None:
    values = Values()
    wanted = OF_VALUES[name](values, values.theirs)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(OF_VALUES[name](values, values.ours), wanted, rtol=1e-4, atol=1e-4)


def test_second_derivatives_of_values_in_double() -> None:
    layer = SparseLinear.from_dense(pruned(18, 7, 0.8), trainable=True).double()
    x = random(3, 7).double().requires_grad_()

    def product(x: Tensor, bias: Tensor, values: Tensor) -> Tensor:
        return func.functional_call(layer, {"bias": bias, "values": values}, (x,))

    inputs = (x, layer.bias, layer.values)
    assert torch.autograd.gradgradcheck(product, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(product, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


def test_an_ensemble_of_layers_that_are_stacked() -> None:
    layers = [SparseLinear.from_dense(pruned(ROWS, COLS, 0.5, seed=0)) for _ in range(3)]
    for place, layer in enumerate(layers):
        layer.values.view(torch.float32).mul_(place + 1)  # streams of one length
    parameters, buffers = func.stack_module_state(layers)
    together = func.vmap(lambda p, b, x: func.functional_call(layers[0], (p, b), (x,)), (0, 0, None))
    wanted = torch.stack([layer(X) for layer in layers])
    torch.testing.assert_close(together(parameters, buffers, X), wanted)


def test_what_old_batches_cannot_do_is_told() -> None:
    values = Values()
    with pytest.raises(NotImplementedError, match="cannot batch over the values"):
        functional.hessian(lambda w: values.ours(w, ONE).pow(3).sum(), values.start, vectorize=True)
