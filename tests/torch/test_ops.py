from __future__ import annotations

import copy
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from gossamer import _core  # noqa: E402
from gossamer.torch import SparseLinear, sparsify  # noqa: E402
from gossamer.torch.handles import _handles  # noqa: E402
from torch_layers import pruned, random, worst  # noqa: E402


def block() -> nn.Sequential:
    model = nn.Sequential(pruned(300, 200), nn.GELU(), pruned(200, 300, bias=False, seed=1))
    assert len(sparsify(model).packed) == 2
    return model


@pytest.mark.parametrize("trainable", [False, True])
def test_operators_pass_torchs_own_checks(trainable: bool) -> None:
    layer = SparseLinear.from_dense(pruned(20, 30), "bitmap", trainable=trainable).double()
    if not trainable:
        layer.bias.requires_grad_(False)
    x = random(4, 30).double().requires_grad_()
    streams = (layer.values, layer._index(), layer._numbers)
    ops = torch.ops.gossamer
    torch.library.opcheck(ops.linear.default, (x, *streams, layer.bias))
    y = random(4, 20).double().requires_grad_(not trainable)
    torch.library.opcheck(
        ops.linear_transposed.default, (y, *(s.detach() if s is layer.values else s for s in streams))
    )


@pytest.mark.parametrize("format", ["bitmap", "csr", "nm", "dense"])
def test_gradients_of_inputs_and_bias_in_double(format: str) -> None:
    layer = SparseLinear.from_dense(pruned(17, 7), format).double()
    x = random(2, 1, 7).double().requires_grad_()

    def product(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"bias": bias}, (x,))

    assert torch.autograd.gradcheck(product, (x, layer.bias))
    assert torch.autograd.gradgradcheck(product, (x, layer.bias), fast_mode=True)


def test_gradients_of_values_in_double() -> None:
    layer = SparseLinear.from_dense(pruned(18, 7, 0.8), trainable=True).double()
    x = random(3, 7).double().requires_grad_()

    def product(x: torch.Tensor, bias: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"bias": bias, "values": values}, (x,))

    assert torch.autograd.gradcheck(product, (x, layer.bias, layer.values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_those_of_the_dense_layer(dtype: torch.dtype) -> None:
    linear = pruned(500, 90, dtype=dtype)
    layer = SparseLinear.from_dense(linear, trainable=True)
    x, y = (random(7, n, seed=n).to(dtype) for n in (90, 500))
    ours = x.clone().requires_grad_()
    layer(ours).backward(y)
    weight = linear.weight.detach()
    assert worst(ours.grad, y, weight.t()) <= 1
    kept = weight != 0
    full = torch.zeros_like(weight)
    count = int(kept.sum())
    full.view(-1)[layer._handle().places(0, count)] = layer.values.grad[:count]
    assert not layer.values.grad[count:].any()
    assert not full[~kept].any()
    dense = y.double().t() @ x.double()
    size = y.double().abs().t() @ x.double().abs()
    rounding = torch.finfo(dtype).eps / 2
    assert ((full.double() - dense).abs() <= (8 * 2.0**-24 * size + 1.01 * rounding * dense.abs() + 1e-7))[kept].all()
    assert worst(layer.bias.grad[None], torch.ones(1, 7), y.t()) <= 1


def test_no_gradient_is_made_that_nobody_asked_for() -> None:
    layer = SparseLinear.from_dense(pruned(20, 30))
    assert layer(random(2, 30)).requires_grad  # the bias learns
    layer.bias.requires_grad_(False)
    assert not layer(random(2, 30)).requires_grad
    x = random(2, 30).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.bias.grad is None


def test_training_moves_values_and_keeps_zeros() -> None:
    dense = pruned(64, 48, 0.7)
    layer = SparseLinear.from_dense(copy.deepcopy(dense), trainable=True)
    kept = (dense.weight != 0).float().detach()
    x, goal = random(32, 48), random(32, 64, seed=2)
    ours = torch.optim.SGD(layer.parameters(), lr=0.5)
    theirs = torch.optim.SGD(dense.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        for model, optimizer in ((layer, ours), (dense, theirs)):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), goal)
            loss.backward()
            if model is dense:
                dense.weight.grad.mul_(kept)
            else:
                losses.append(float(loss.detach()))
            optimizer.step()
    assert losses == sorted(losses, reverse=True)
    trained = layer.to_dense().weight
    assert torch.equal(trained != 0, kept.bool())
    assert torch.allclose(trained, dense.weight, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert worst(layer(x), x, trained, layer.bias) <= 1


def test_trainable_layers_change_type() -> None:
    linear = pruned(64, 48)
    layer = SparseLinear.from_dense(linear, trainable=True)
    x = random(3, 48).bfloat16()
    for _ in range(2):
        layer = layer.bfloat16()
        rounded = linear.weight.detach().bfloat16()
        assert torch.equal(layer.to_dense().weight, rounded)
        with torch.no_grad():
            assert worst(layer(x), x, rounded, linear.bias.detach().bfloat16()) <= 1
        layer = layer.float()
        with torch.no_grad():
            assert worst(layer(x.float()), x, rounded, linear.bias.detach().bfloat16()) <= 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_compiled_without_a_break() -> None:
    gc.collect()  # or layers of other tests leave while theirs and ours are counted
    model = block()
    compiled = torch.compile(model, fullgraph=True)
    before = None
    for batch in (1, 5, 9):
        x = random(batch, 200)
        with torch.no_grad():
            assert torch.allclose(compiled(x), model(x), rtol=1e-6, atol=1e-6)
        before = before or len(_handles)
    assert len(_handles) == before  # the graph gets the tensors themselves
    x, same = (random(3, 200).requires_grad_() for _ in range(2))
    compiled(x).square().sum().backward()
    model(same).square().sum().backward()
    assert torch.allclose(x.grad, same.grad, rtol=1e-5, atol=1e-6)


def test_exported_and_saved(tmp_path: Path) -> None:
    model = block().eval()
    x = random(4, 200)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("gossamer.linear.default") == 2
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (4, 7):
        x = random(batch, 200)
        assert torch.equal(loaded(x), model(x))


def transforms() -> dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]]:
    from torch.fx.experimental.proxy_tensor import make_fx

    return {
        "make_fx": lambda layer, x: make_fx(layer, tracing_mode="real")(torch.zeros_like(x))(x),
        "functionalize": lambda layer, x: torch.func.functionalize(layer)(x),
    }


@pytest.mark.parametrize("name", transforms())
def test_transforms_and_tracers_see_the_operator(name: str) -> None:
    linear = pruned(20, 30)
    layer = SparseLinear.from_dense(linear)
    for module in (layer, linear):
        module.requires_grad_(False)
    x = random(4, 30)
    run = transforms()[name]
    assert torch.allclose(run(layer, x), run(linear, x), rtol=1e-5, atol=1e-6)


def test_products_run_on_torchs_own_threads() -> None:
    if "OpenMP" not in torch.__config__.parallel_info().partition("backend: ")[2]:
        pytest.skip("this torch has no OpenMP")
    threads = Path("/proc/self/task")
    layer = SparseLinear.from_dense(pruned(4000, 300))
    x = random(3, 300)
    with torch.no_grad():
        (torch.rand(4_000_000) + 1).sum()  # starts torch's team
        layer(x)
        before = {path.name for path in threads.iterdir()}
        for _ in range(20):
            layer(x)
        assert {path.name for path in threads.iterdir()} == before
    assert _core.use_open_mp(torch._C.__file__)


def test_libraries_without_open_mp_are_told_from_those_with() -> None:
    import math

    assert not _core.use_open_mp(math.__file__ if hasattr(math, "__file__") else "no such library")
    layer = SparseLinear.from_dense(pruned(4000, 300))
    x = random(3, 300)
    try:
        with torch.no_grad():
            alone = layer(x)  # on a team of our own
    finally:
        assert _core.use_open_mp(torch._C.__file__)
    with torch.no_grad():
        assert torch.equal(layer(x), alone)


@pytest.mark.skipif("tsan" in os.environ.get("LD_PRELOAD", ""), reason="ThreadSanitizer starts no threads after a fork")
def test_a_forked_child_waits_for_no_threads_of_its_parent() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    layer = SparseLinear.from_dense(pruned(4000, 300))
    x = random(3, 300)
    try:
        with torch.no_grad():
            expected = layer(x)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    signal.alarm(60)  # ends a child that hangs
                    status = 0 if torch.equal(layer(x), expected) else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert torch.equal(layer(x), expected)
    finally:
        torch.set_num_threads(threads)


def test_native_products_check_what_they_can() -> None:
    weight = SparseLinear.from_dense(pruned(20, 30))._handle().weight
    linear = _core.Linear(weight)
    assert linear.kernel in _core.kernels()
    with pytest.raises(ValueError, match="float types are"):
        linear.multiply(0, 0, 30, 0, 3, 0, 0, 1)
    with pytest.raises(ValueError, match="panels must be from 0 to 2, got 1 to 3"):
        linear.expand(1, 3, 0, 30, 1)


def test_zeros_without_memory_and_negated_views() -> None:
    dense = pruned(50, 70)
    layer = SparseLinear.from_dense(dense)
    with torch.no_grad():
        assert torch.equal(layer(torch._efficientzerotensor(3, 70)), dense.bias.expand(3, 50))
        layer.bias = None
        layer._parameters["bias"] = torch._neg_view(dense.bias.detach())
        x = random(2, 70)
        assert worst(layer(x), x, dense.weight, -dense.bias) <= 1


def test_operations_are_counted_as_the_dense_layers() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    dense = pruned(50, 70, 0.6)
    counts = []
    for layer in (dense, SparseLinear.from_dense(dense, "bitmap", trainable=True)):
        with FlopCounterMode(display=False) as counter:
            layer(random(2, 3, 70).requires_grad_()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 6 * 50 * 70


def test_inputs_may_be_given_by_the_name_that_a_linear_has_for_them() -> None:
    linear = nn.Linear(6, 4)
    layer = SparseLinear.from_dense(linear)
    x = torch.randn(3, 6)
    assert torch.equal(layer(input=x), layer(x))
    torch.testing.assert_close(layer(input=x), linear(input=x))
