"""The float types of stored values and of activations, as torch has them."""

from __future__ import annotations

import torch

FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
"""By the names that gossamer has for them."""

NAMES = {dtype: name for name, dtype in FLOATS.items()}
"""The other way round."""
