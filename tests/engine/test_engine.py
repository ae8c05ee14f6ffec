"""The decoder against the float64 reference model, and the promises of its protocol."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkout import ROOT
from engine_cases import VOCAB, config, decoder, reference_logits, shapes, tensors, tokens
from gossamer import _core
from reference_model import ReferenceModel

VARIANTS = {
    "grouped": {},
    "multi_head": {"kv_heads": 6},
    "multi_query": {"kv_heads": 1},
    "tied": {"tied": True},
    "odd_sizes": {"hidden": 70, "head_dim": 22, "intermediate": 67},
    "partial_rotary": {"inv_freq": (1.0, 0.25, 0.03), "rope_scale": 1.2},
    "wide_heads": {"head_dim": 80, "heads": 2},
    "narrow_heads": {"head_dim": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_match_the_float64_reference(variant: str) -> None:
    c = config(**VARIANTS[variant])
    biases = variant == "odd_sizes"
    text = tokens(90)
    logits = decoder(c, biases=biases).step([(0, text)], all_logits=True)
    # f32 against f64 through two blocks: activations of order 1 and sums of ~100 terms leave about 1e-6.
    np.testing.assert_allclose(logits, reference_logits(c, text, biases), atol=2e-5, rtol=0)


def test_long_contexts_cross_pages_spans_and_chunks() -> None:
    c = config(layers=1)
    text = tokens(1300)
    np.testing.assert_allclose(
        decoder(c).step([(0, text)], all_logits=True), reference_logits(c, text), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("type", ["f32", "int8", "int4"])
def test_formats_of_the_same_values_agree(type: str) -> None:
    text = tokens(60)
    dense = decoder(config(), "dense", type, activations="f32").step([(0, text)], all_logits=True)
    for format in ("bitmap", "csr", "nm"):
        other = decoder(config(), format, type, activations="f32").step([(0, text)], all_logits=True)
        np.testing.assert_allclose(other, dense, atol=2e-5, rtol=0)


@pytest.mark.parametrize("type", ["bf16", "f16", "int8", "int4"])
def test_narrow_values_are_those_that_are_stored(type: str) -> None:
    c = config()
    weights, vectors = tensors(c)
    stored = {n: _core.pack(v, "dense", type, 64).unpack() for n, v in weights.items()}
    model = ReferenceModel(c.describe(), {**stored, **vectors})
    hidden = model.embed(tokens(40))
    for i in range(c.layers):
        hidden, _ = model.forward_block(i, hidden)
    logits = decoder(c, "bitmap", type, activations="f32").step([(0, tokens(40))], all_logits=True)
    np.testing.assert_allclose(logits, model.head(hidden), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("type", ["f32", "int8", "int4"])
def test_neither_company_nor_threads_change_a_bit(type: str, kv: str) -> None:
    c = config()
    texts = [tokens(5 + 9 * i, seed=i) for i in range(16)]
    alone = []
    one = decoder(c, "bitmap", type, threads=1, kv=kv)
    for text in texts:
        rows = [one.step([(0, text[i : i + 1])])[0] for i in range(len(text))]
        one.free(0)
        alone.append(np.array(rows))
    for threads in (1, 2, 3):
        many = decoder(c, "bitmap", type, threads=threads, kv=kv)
        prompts = many.step([(i, text[:-3]) for i, text in enumerate(texts)], all_logits=True)
        np.testing.assert_array_equal(prompts, np.concatenate([rows[:-3] for rows in alone]))
        for back in (3, 2, 1):  # one token of each of 16 sequences a call
            step = many.step([(i, text[-back : len(text) - back + 1]) for i, text in enumerate(texts)])
            np.testing.assert_array_equal(step, np.array([rows[-back] for rows in alone]))


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 24), (5, 1, 8), (4, 4, 80), (52, 1, 4), (3, 1, 7)])
def test_the_cuts_of_a_prompt_do_not_change_a_bit(heads: int, kv_heads: int, head_dim: int, kv: str) -> None:
    """Blocks of tokens share what they read of a page; a token's sums stay what they are when it comes alone."""
    c = config(layers=1, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    ids, other = tokens(1100), tokens(90, seed=5)
    whole = decoder(c, threads=1, kv=kv).step([(0, ids)], all_logits=True)
    cut = decoder(c, threads=2, kv=kv)
    at, parts = 0, []
    for size in (1, 62, 1, 1, 447, 3, 5, 580):  # over the ends of pages, of spans and of chunks
        out = cut.step([(1, other[:7]), (0, ids[at : at + size])], all_logits=True)
        cut.rollback(1, 7)
        parts.append(out[7:])
        at += size
    assert at == len(ids)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_rollback_and_free_forget() -> None:
    d = decoder(config())
    text = tokens(200)
    first = d.step([(0, text)])
    d.rollback(0, 150)
    assert d.length(0) == 50
    np.testing.assert_array_equal(d.step([(0, text[50:])]), first)
    d.free(0)
    assert d.length(0) == 0
    d.free(0)
    np.testing.assert_array_equal(d.step([(0, text)]), first)
    with pytest.raises(ValueError, match="cannot roll back 201 tokens of sequence 0, which has 200"):
        d.rollback(0, 201)
    assert d.length(0) == 200


def test_forward_block_gives_what_the_reference_gives() -> None:
    c = config()
    weights, vectors = tensors(c)
    model, d = ReferenceModel(c.describe(), {**weights, **vectors}), decoder(c)
    text = tokens(3 * 40)
    hidden = d.embed(text)
    np.testing.assert_array_equal(hidden, weights["embed"][text])
    names = ("q", "k", "v", "o", "gate", "up", "down")
    expected, inputs = model.forward_block(1, hidden, names, sequence_length=40)
    before = hidden.copy()
    out, captured = d.forward_block(1, hidden, names, sequence_length=40)
    np.testing.assert_array_equal(hidden, before)
    np.testing.assert_allclose(out, expected, atol=2e-5, rtol=0)
    assert set(captured) == set(names)
    for name in names:
        np.testing.assert_allclose(captured[name], inputs[name], atol=2e-5, rtol=0)
    np.testing.assert_allclose(d.head(out), model.head(expected), atol=4e-5, rtol=0)
    assert d.length(0) == 0


@pytest.mark.parametrize("names", [(), ("v",), ("q", "o"), ("up",), ("gate", "k"), ("down",), ("o", "down", "q")])
def test_block_inputs_are_those_of_the_whole_block(names: tuple[str, ...]) -> None:
    d = decoder(config())
    hidden = d.embed(tokens(30))
    captured = d.block_inputs(1, hidden, names, 10)
    expected = d.forward_block(1, hidden, names, 10)[1]
    assert captured.keys() == expected.keys() == set(names)
    for name, values in expected.items():
        np.testing.assert_array_equal(captured[name], values)


def test_blocks_one_by_one_are_the_step() -> None:
    d = decoder(config(), type="int8")
    text = tokens(300)
    hidden = d.embed(text)
    for i in range(2):
        hidden, _ = d.forward_block(i, hidden)
    np.testing.assert_array_equal(d.head(hidden), d.step([(0, text)], all_logits=True))


def test_set_weight_replaces_one_linear() -> None:
    c = config()
    d = decoder(c)
    text = tokens(20)
    before = d.step([(0, text)])
    d.free(0)
    d.set_weight("layers.1.up", _core.pack(np.zeros((100, 72), np.float32), "csr", "int8"))
    weights, vectors = tensors(c)
    model = ReferenceModel(c.describe(), {**weights, "layers.1.up": np.zeros((100, 72)), **vectors})
    hidden = model.embed(text)
    for i in range(2):
        hidden, _ = model.forward_block(i, hidden)
    after = d.step([(0, text)])
    np.testing.assert_allclose(after[0], model.head(hidden)[-1], atol=2e-5, rtol=0)
    assert np.abs(after - before).max() > 1e-3
    with pytest.raises(ValueError, match=r"weight 'layers.1.up' is 5 x 72, but the config asks for 100 x 72"):
        d.set_weight("layers.1.up", _core.pack(np.zeros((5, 72), np.float32), "csr", "int8"))
    with pytest.raises(ValueError, match=r"no block has a weight 'layers\.2\.up'"):
        d.set_weight("layers.2.up", _core.pack(np.zeros((100, 72), np.float32), "csr", "int8"))


def test_refused_calls_change_nothing() -> None:
    d = decoder(config(context=64))
    d.step([(0, tokens(60))])
    for batch, message in [
        ([(0, tokens(5))], "sequence 0 would grow to 65 tokens, beyond the context of 64"),
        ([(1, tokens(2)), (0, tokens(5))], "beyond the context"),
        ([(0, [VOCAB])], f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ([(0, [-1])], "token id -1 is outside"),
        ([(0, [])], "sequence 0 got no tokens"),
        ([(0, [1]), (0, [2])], "sequence 0 appears twice"),
        ([(-1, [1])], "sequence ids must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            d.step(batch)
        assert (d.length(0), d.length(1)) == (60, 0)
    fresh = decoder(config(context=64))
    fresh.step([(0, tokens(60))])
    np.testing.assert_array_equal(d.step([(0, [3])]), fresh.step([(0, [3])]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, r"(weight|vector) 'layers.2.*' is missing"),
        ({"vocab": 151}, "weight 'embed' is 150 x 72, but the config asks for 151 x 72"),
        ({"biases": ("up",)}, "vector 'layers.0.up.bias' is missing"),
        ({"tied": True}, "weight 'head' is unknown to this decoder"),
    ],
)
def test_weights_that_contradict_the_description_are_named(change: dict[str, Any], message: str) -> None:
    c = config()
    weights, vectors = tensors(c)
    packed = {name: _core.pack(v, "dense", "f32") for name, v in weights.items()}
    with pytest.raises(ValueError, match=message):
        _core.Decoder(replace(c, **change).describe().to_dict(), packed, vectors)


def test_unknown_and_missing_tensors_are_named() -> None:
    c = config()
    weights, vectors = tensors(c)
    packed = {name: _core.pack(v, "dense", "f32") for name, v in weights.items()}
    with pytest.raises(ValueError, match="weight 'extra' is unknown"):
        _core.Decoder(c.describe().to_dict(), {**packed, "extra": packed["head"]}, vectors)
    with pytest.raises(ValueError, match="vector 'norm' is missing"):
        _core.Decoder(c.describe().to_dict(), packed, {k: v for k, v in vectors.items() if k != "norm"})
    with pytest.raises(ValueError, match="vector 'norm' has 5 elements, but the config asks for 72"):
        _core.Decoder(c.describe().to_dict(), packed, {**vectors, "norm": np.ones(5, np.float32)})
    for option in ({"kv": "f8"}, {"activations": "a4"}, {"threads": -2}):
        with pytest.raises(ValueError, match=next(iter(option))):
            _core.Decoder(c.describe().to_dict(), packed, vectors, **option)


def test_ctrl_c_stops_a_long_prefill_and_leaves_the_sequence() -> None:
    d = decoder(config(context=200_000, layers=2), threads=2)
    start = d.step([(0, tokens(10))])
    d.rollback(0, 1)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        d.step([(0, tokens(150_000)), (1, tokens(5))])
    assert time.monotonic() - began < 20  # the whole call would take minutes
    timer.join()
    assert (d.length(0), d.length(1)) == (9, 0)
    np.testing.assert_array_equal(d.step([(0, tokens(10)[9:])]), start)


def test_threads_may_share_a_decoder() -> None:
    d = decoder(config(), type="int8")
    expected = [decoder(config(), type="int8").step([(0, tokens(30, seed=i))]) for i in range(6)]
    results: dict[int, np.ndarray] = {}

    def run(i: int) -> None:
        for first in range(0, 30, 5):
            results[i] = d.step([(i, tokens(30, seed=i)[first : first + 5])])

    workers = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(6):
        np.testing.assert_array_equal(results[i], expected[i])


@pytest.mark.skipif("tsan" in os.environ.get("LD_PRELOAD", ""), reason="ThreadSanitizer starts no threads after a fork")
def test_a_forked_child_gets_threads_of_its_own() -> None:
    d = decoder(config(intermediate=3000), type="int8", threads=2)
    expected = d.step([(0, tokens(8))])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            same = np.array_equal(d.step([(1, tokens(8))]), expected)
            status = 0 if same else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    np.testing.assert_array_equal(d.step([(1, tokens(8))]), expected)


def test_every_linear_says_which_kernel_it_uses() -> None:
    names = dict(decoder(config(), "bitmap", "int8").kernels())
    assert set(names) == {n for n in shapes(config()) if n != "embed"}
    assert names["layers.0.q"].startswith("bitmap_linear_int8_a8__")
    assert names["head"].startswith("dense_linear_int8_a8__")


@pytest.mark.parametrize("ids", [[1.5], np.array([2.0]), np.array([[1, 2]]), ["a"], [2**40], [None]], ids=repr)
def test_token_ids_are_integers_in_a_vector(ids: Any) -> None:
    d = decoder(config())
    with pytest.raises(ValueError, match="token id"):
        d.step([(0, ids)])
    with pytest.raises(ValueError, match="token id"):
        d.embed(ids)
    assert d.length(0) == 0


def test_ids_that_wrap_to_legal_ones_are_refused() -> None:
    with pytest.raises(ValueError, match=f"token id {2**32 + 5} is outside"):
        decoder(config()).step([(0, np.array([2**32 + 5]))])


def test_a_signal_handler_that_uses_the_decoder_gets_an_error_and_no_deadlock() -> None:
    d = decoder(config(context=200_000), threads=2)
    before = signal.signal(signal.SIGALRM, lambda *_: d.length(0))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(RuntimeError, match="inside a call of this decoder already"):
            d.step([(0, tokens(150_000))])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert d.length(0) == 0


def test_a_daemon_thread_in_a_call_does_not_abort_the_exit() -> None:
    code = (
        "import threading, time, engine_cases as t\n"
        "d = t.decoder(t.config(context=200_000), threads=2)\n"
        "threading.Thread(target=lambda: d.step([(0, t.tokens(150_000))]), daemon=True).start()\n"
        "time.sleep(0.5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests" / "support",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers need all address space")
def test_a_step_without_memory_keeps_none() -> None:
    d = decoder(config(context=1 << 24, kv_heads=6))
    first = d.step([(0, tokens(3))])
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), limit[1]))
    try:
        with pytest.raises(MemoryError):
            d.step([(1, np.zeros(1 << 23, np.int32))])  # 20 GB of keys and values
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert d.length(1) == 0
    np.testing.assert_array_equal(d.step([(1, tokens(3))]), first)
