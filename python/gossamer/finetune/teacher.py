"""The teacher of a run: its hidden states and predictions, of which the likeliest may be computed once and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import naming
from ..nn.decoder import Decoder, Output
from .batches import Batch
from .losses import Full, Top, top_of
from .options import Options

_FILE = "teacher.top"
_ROWS = 1024  # tokens whose logits exist at once


class Teacher:
    """A dense model, and what is kept of it.

    The file has a row for every token of the data: the likeliest tokens that the teacher sees behind it, and their
    log-probabilities.

    Attributes:
        known: Which rows are there; a state holds it, so that after a stop only those count that lie on the disk.
    """

    def __init__(self, decoder: Decoder, options: Options, folder: Path, tokens: int) -> None:
        """Makes or opens the file where predictions are kept.

        Args:
            decoder: The model.
            options: The run's.
            folder: Where the file lies.
            tokens: Of the data.

        Raises:
            GossamerError: the file cannot be made.
        """
        self._decoder, self._options = decoder, options
        kept = bool(options.top and options.loss.predictions_alone)
        self.known = torch.zeros(tokens if kept else 0, dtype=torch.bool)
        self._rows: NDArray[np.int32] | None = None
        if kept:
            path, shape = folder / _FILE, (tokens, 2 * min(options.top, decoder.config.vocab))
            with naming(path, "cannot write"):
                with path.open("ab") as file:
                    file.truncate(4 * shape[0] * shape[1])  # takes no room yet
                self._rows = np.memmap(path, "<i4", "r+", shape=shape)

    def flush(self) -> None:
        """Has what is kept reach the disk."""
        if isinstance(self._rows, np.memmap):
            self._rows.flush()

    @torch.no_grad()
    def look(self, batch: Batch) -> tuple[Output, Full | Top | None]:
        """Returns hidden states after each block, where the loss has a part for them, and predictions where it looks.

        Args:
            batch: Windows, on the teacher's device.
        """
        loss = self._options.loss
        if not (loss.squarehead or loss.kl):
            return Output([], None, []), None
        places = batch.places[batch.asked].cpu()
        if self._rows is not None and not loss.squarehead and bool(((places >= 0) & self.known[places]).all()):
            return Output([], None, []), self._kept(places, batch.tokens.device)
        found: Output = self._decoder(
            batch.tokens, first=batch.first, reads=batch.reads, heard=batch.heard, logits=False
        )
        if not loss.kl:
            return found, None
        last = found.hidden[-1][batch.asked]
        if not self._options.top:
            return found, Full(self._decoder, last)
        parts = [top_of(self._decoder.logits(part), self._options.top) for part in torch.split(last, _ROWS)]
        top = Top(torch.cat([part.ids for part in parts]), torch.cat([part.scores for part in parts]))
        self._keep(places, top)
        return found, top

    def _keep(self, places: Tensor, top: Top) -> None:
        if self._rows is None:
            return
        again = places >= 0
        rows = torch.cat([top.ids.int().cpu(), top.scores.cpu().view(torch.int32)], 1)
        self._rows[places[again].numpy()] = rows[again].numpy()
        self.known[places[again]] = True

    def _kept(self, places: Tensor, device: torch.device) -> Top:
        assert self._rows is not None
        rows = torch.from_numpy(np.asarray(self._rows[places.numpy()]))
        ids, scores = rows.chunk(2, 1)
        return Top(ids.to(device, torch.int64), scores.contiguous().view(torch.float32).to(device))
