"""What every engine has: the native decoder, that of GPUs on the processor, and the tests' own."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from engine_cases import config, decoder, tokens
from fakes import FakeDecoder
from gossamer import engine
from gossamer.checkpoints import open_checkpoint
from gossamer.generation.model import Model
from gossamer.generation.ready import ready
from gossamer.generation.speeds import measure
from gossamer.packing.convert import pack_checkpoint
from gossamer.packing.folder import PackedModel
from reference_model import ReferenceModel, random_tensors
from tiny import tiny_llama

MEMBERS = {name for name in vars(engine.Engine) if not name.startswith("_")}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    return pack_checkpoint(open_checkpoint(tiny_llama(tmp_path_factory.mktemp("tiny") / "m")), weights="bf16")


@pytest.fixture(params=["native", "torch", "fake"])
def model(request: pytest.FixtureRequest, packed: PackedModel) -> Model:
    if request.param == "native":
        return ready(packed, threads=2)
    made: Any = FakeDecoder(packed.config.vocab)
    if request.param == "torch":
        torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
        from gossamer.nn.engine import Engine

        made = Engine(packed.config, packed.weights, packed.vectors, "cpu", dtype=torch.bfloat16, kernels=None)
    return Model(made, packed.config, packed.tokenizer, packed.info, packed.weights, device=request.param)


def test_engines_have_all_that_may_be_asked_of_them(model: Model) -> None:
    one = model.decoder
    assert {"step", "rollback", "free", "length", "kernels", "vocab", "threads", "kv", "weight_bytes"} <= MEMBERS
    assert set(dir(one)) >= MEMBERS
    assert one.vocab == model.config.vocab
    assert isinstance(one.threads, int)
    assert one.kv in ("f32", "f16", "bf16")
    assert one.weight_bytes > 0
    assert one.kv_bytes_of(3, 1) == one.kv_growth(3, 3, 1) >= one.kv_bytes_read(3) > one.kv_bytes_read(2)
    assert all(isinstance(word, str) for pair in one.kernels() for word in pair)
    logits = one.step([(3, [1, 2, 3]), (4, [5])], True)
    assert logits.shape == (4, one.vocab)
    assert logits.dtype == np.float32
    assert (one.length(3), one.length(4), one.length(5)) == (3, 1, 0)
    assert one.kv_growth(3, 1, 1) == 0 < one.kv_growth(3, 2000, 1) < one.kv_growth(5, 2000, 1)
    one.rollback(3, 2)
    one.free(4)
    one.free(5)
    assert (one.length(3), one.length(4)) == (1, 0)


def test_a_fork_goes_on_as_the_whole_text_would(model: Model) -> None:
    one = model.decoder
    one.step([(0, [1, 2, 3, 4])])
    one.fork(0, 1, 3)
    assert (one.length(0), one.length(1)) == (4, 3)
    whole = one.step([(2, [1, 2, 3])]), one.step([(2, [7])])
    np.testing.assert_allclose(one.step([(1, [7])]), whole[1], rtol=0, atol=2.0**-6)  # bf16, cut otherwise
    one.fork(0, 3, 0)
    assert one.length(3) == 0
    for seq, to, length in ((0, 5, 5), (0, 5, -1), (9, 5, 1), (0, 1, 2)):
        with pytest.raises(ValueError, match="cannot fork"):
            one.fork(seq, to, length)
    assert [one.length(seq) for seq in (0, 1, 5)] == [4, 4, 0]


def test_models_that_are_walked_by_blocks_have_all_that_may_be_asked_of_them() -> None:
    asked = {name for name in vars(engine.Blocks) if not name.startswith("_")}
    assert asked >= {"embed", "forward_block", "block_inputs", "head", "set_weight"}
    for one in (decoder(config()), ReferenceModel(config().describe(), random_tensors(config().describe()))):
        assert asked <= set(dir(one))


def test_bench_times_any_engine(model: Model) -> None:
    notes = []
    rows = measure(model, 16, 4, 1, lambda *note: notes.append(note[2]))
    assert [(row["test"], row["threads"]) for row in rows] == [
        ("pp16", model.decoder.threads),
        ("tg4", rows[0]["threads"]),
    ]
    assert notes[0] == (f"timing, {model.decoder.threads} threads" if model.decoder.threads else "timing, torch")
    assert f", {notes[0][8:]}>" in repr(model)


def test_a_sequence_may_be_dropped_while_a_call_runs() -> None:
    """By a thread that does not wait, and by the garbage collector in the thread that is inside the call."""
    one = decoder(config(context=200_000), threads=2)
    one.step([(0, tokens(3)), (1, tokens(3)), (2, tokens(3))])

    def inside(*_: Any) -> None:
        one.free(2)
        dropping.start()
        dropping.join(60)
        assert not dropping.is_alive(), "the other thread is still waiting"
        raise KeyboardInterrupt

    dropping = threading.Thread(target=one.free, args=(1,))
    before = signal.signal(signal.SIGALRM, inside)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            one.step([(3, tokens(150_000))])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [one.length(seq) for seq in range(4)] == [3, 0, 0, 0]


def test_a_stream_that_is_dropped_while_another_steps_leaves_nothing(packed: PackedModel) -> None:
    torch = pytest.importorskip("torch", reason="the [torch] extra is not installed")
    from gossamer.nn.engine import Engine

    one = Engine(packed.config, packed.weights, packed.vectors, "cpu", dtype=torch.float32)
    model = Model(one, packed.config, packed.tokenizer, packed.info, packed.weights)
    dropped = model.stream("The net", max_new_tokens=9)
    next(dropped)
    inside, overlaps, extend = [], [], one._extend

    def slow(seq: int, ids: Any, all_logits: bool) -> Any:
        inside.append(seq)
        overlaps.append(len(inside))
        dropped.close()  # as the garbage collector may
        time.sleep(0.001)
        result = extend(seq, ids, all_logits)
        inside.pop()
        return result

    one._extend = slow  # type: ignore[method-assign]
    texts: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: texts.update({i: model.generate("The", max_new_tokens=4)}))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(overlaps) == 1
    assert len(set(texts.values())) == 1
    assert [one.length(seq) for seq in range(4)] == [0] * 4
