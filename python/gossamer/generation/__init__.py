"""What models give: texts by one scheduler, drafts, beams, sampling, conversations; vectors, speech, perplexity."""

from __future__ import annotations
