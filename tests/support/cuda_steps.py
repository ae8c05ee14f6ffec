"""The check of what a decoder does between its linears, as kernels run as loops or on a GPU: against float64."""

from __future__ import annotations

from types import ModuleType

import torch

from gossamer.nn.cuda_ops import Kernels


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def close(found: torch.Tensor, exact: torch.Tensor, size: torch.Tensor | None = None) -> bool:
    """Whether a result is within one rounding to its type and some float32 roundings of its terms' size."""
    half = torch.finfo(found.dtype).eps / 2
    size = exact.abs() if size is None else size
    error = (found.cpu().double() - exact).abs()
    return bool((error <= 1.01 * half * exact.abs() + 32 * 2.0**-24 * size + 2.0**-25).all())


def check_attention(kernels: ModuleType, device: str, dtype: torch.dtype) -> None:
    cases = [(1, 1, 1, 0), (4, 4, 32, 70), (4, 2, 33, 45), (6, 2, 64, 3), (7, 1, 128, 200), (10, 2, 12, 100)]
    for heads, kv_heads, width, place in [*cases, (3, 1, 256, 40), (2, 2, 130, 9)]:
        queries, cache = 3 * normal(heads, 1, width, dtype=dtype), normal(2, kv_heads, 300, width, dtype=dtype)
        cache[:, :, place + 1 :] = torch.nan  # not written yet
        shared = heads // kv_heads
        keys, values = (t[:, : place + 1].double().repeat_interleave(shared, 0) for t in cache)
        scores = (keys @ queries.double().transpose(1, 2)).squeeze(-1) * width**-0.5
        weights = scores.softmax(-1)[:, None]
        exact, size = weights @ values, weights @ values.abs()
        # A weight is off by the score's own error: 32-bit roundings of its terms.
        size = size * (4 + 0.25 * width**-0.5 * (keys.abs() @ queries.double().abs().transpose(1, 2)).max())
        found = []
        for splits in (1, 3, 0):
            steps = Kernels(kernels, torch.device(device), splits)
            moved = [
                t.to(device) for t in (queries, cache[0].contiguous(), cache[1].contiguous(), torch.tensor([place]))
            ]
            for _ in range(2):  # counters are zero again
                found.append(steps.attend(*moved, width**-0.5).cpu())
                assert close(found[-1].view(heads, width), exact[:, 0], size[:, 0])
            assert torch.equal(found[-1], found[-2])


def check_steps(kernels: ModuleType, device: str, dtype: torch.dtype) -> None:
    steps = Kernels(kernels, torch.device(device))
    for count, width in [(1, 1), (1, 97), (3, 1030), (2, 512), (3, 4104), (1, 8192), (1, 8200)]:
        states, update = normal(count, width, dtype=dtype), 3 * normal(count, width + 1, dtype=dtype)[:, :width]
        weight, eps = normal(width) + 1, 1e-5
        update = update.contiguous()
        for given in (None, update):
            total = states if given is None else states + given
            placed = None if given is None else given.to(device)
            summed, normed = steps.add_norm(states.clone().to(device), placed, weight.to(device), eps)
            assert torch.equal(summed.cpu(), total)
            wide = total.double()
            assert close(normed, wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double())
        both = 4 * normal(count, 2 * width, dtype=dtype)
        gate, up = both.double().chunk(2, -1)
        exact = gate / (1 + (-gate).exp()) * up
        assert close(steps.gate(both.to(device)), exact, (gate.abs() + 1) * exact.abs())
    for count, heads, kv_heads, width, half in [
        (1, 4, 2, 32, 16),
        (3, 6, 2, 40, 15),
        (2, 1, 1, 7, 0),
        (5, 2, 2, 128, 64),
    ]:
        qkv = normal(count, heads + 2 * kv_heads, width, dtype=dtype)
        angles = 7 * normal(count, half)
        cos, sin, places = angles.cos(), angles.sin(), torch.arange(4, 4 + count)
        keys, values = (torch.full((kv_heads, 12, width), 9, dtype=dtype, device=device) for _ in range(2))
        moved = [t.to(device) for t in (cos, sin, places)]
        queries = steps.rotate(qkv.to(device), heads, *moved, keys, values)
        wide = qkv.double()
        a, b = wide[..., :half], wide[..., half : 2 * half]
        c, s = cos.double()[:, None], sin.double()[:, None]
        exact = torch.cat([a * c - b * s, b * c + a * s, wide[..., 2 * half :]], -1).transpose(0, 1)
        size = torch.cat([a.abs() + b.abs(), a.abs() + b.abs(), wide[..., 2 * half :].abs()], -1).transpose(0, 1)
        assert close(queries, exact[:heads], size[:heads])
        assert close(keys[:, 4 : 4 + count], exact[heads : heads + kv_heads], size[heads : heads + kv_heads])
        assert torch.equal(values[:, 4 : 4 + count].cpu(), qkv[:, heads + kv_heads :].transpose(0, 1))
        for cache in (keys, values):
            assert (cache[:, :4] == 9).all()
            assert (cache[:, 4 + count :] == 9).all()
