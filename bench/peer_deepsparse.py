"""DeepSparse's side of `stacks.py`: runs inside an environment that has deepsparse, and times a stack when told to.

    peer_deepsparse.py LAYERS SIZE SPARSITY THREADS

One JSON document a line: first the version, when the stack is compiled; then, for every line on stdin that says how
often, the seconds of as many passes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import deepsparse
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STEP = 1 / 32  # of the 8-bit activations, which are about 1 in size


def write_stack(path: Path, layers: int, size: int, sparsity: float) -> None:
    """Writes layers of 8-bit activations times 8-bit weights and a ReLU, as exporters of quantized models put it."""
    random = np.random.default_rng(0)
    shared = {"step": np.float32(STEP), "middle": np.uint8(128), "zero": np.int8(0)}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in shared.items()]
    nodes = []
    hidden = "input"
    for layer in range(layers):
        codes = random.integers(1, 128, (size, size), np.int8) * random.choice(np.array([-1, 1], np.int8), size)
        codes[random.random((size, size), np.float32) < sparsity] = 0
        norm = np.float32(np.sqrt(np.mean(np.square(codes, dtype=np.float32)) * size))
        names = {name: f"{name}{layer}" for name in ("weight", "scale", "codes", "sums", "floats", "scaled", "output")}
        constants.append(numpy_helper.from_array(codes, names["weight"]))
        constants.append(numpy_helper.from_array(np.float32(STEP / norm * np.sqrt(2)), names["scale"]))
        nodes += [
            helper.make_node("QuantizeLinear", [hidden, "step", "middle"], [names["codes"]]),
            helper.make_node("MatMulInteger", [names["codes"], names["weight"], "middle", "zero"], [names["sums"]]),
            helper.make_node("Cast", [names["sums"]], [names["floats"]], to=TensorProto.FLOAT),
            helper.make_node("Mul", [names["floats"], names["scale"]], [names["scaled"]]),
            helper.make_node("Relu", [names["scaled"]], [names["output"]]),
        ]
        hidden = names["output"]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])] for name in ("input", hidden)]
    graph = helper.make_graph(nodes, "stack", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    # One message holds less than 2 GB, so weights lie beside it.
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")


def main() -> None:
    layers, size, sparsity, threads = (*map(int, sys.argv[1:3]), float(sys.argv[3]), int(sys.argv[4]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.onnx"
        write_stack(path, layers, size, sparsity)
        engine = deepsparse.compile_model(str(path), batch_size=1, num_cores=threads)
    x = [np.random.default_rng(1).standard_normal((1, size), np.float32)]
    y = engine.run(x)[0]
    if not (np.isfinite(y).all() and y.any()):
        raise SystemExit("the stack's outputs are not finite, or all zero")
    print(json.dumps({"deepsparse": deepsparse.__version__}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            engine.run(x)
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
