"""What a model passes from call to call in `transformers`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache

from ..decoder import FeedbackDecoder
from ..errors import InputError
from ..recurrence import select_rows
from .reading import Progress, join_masks, read_on
from .token_walk import TokenWalk

# How many of the newest tokens can be removed while the past is recorded, or those of the last call, if they are more.
RECORDED = 256
# Tokens of a piece up to which the next tokens join it: what may be read a second time after a removal, and how many
# tokens go with each memory that is kept.
PIECE = 16


@dataclass(frozen=True, eq=False)
class _Piece:
    """Tokens that can be removed.

    Attributes:
        start: how many tokens precede it, padding included.
        before: the progress there.
        x: (B, n, D), the embeddings.
        mask: (B, n) bool, True at a real token; None if all are.
    """

    start: int
    before: Progress
    x: Tensor
    mask: Tensor | None

    @property
    def end(self) -> int:
        return self.start + self.x.shape[1]

    def first(self, count: int) -> _Piece:
        mask = None if self.mask is None else self.mask[:, :count]
        return dataclasses.replace(self, x=self.x[:, :count], mask=mask)

    def extended(self, x: Tensor, mask: Tensor | None) -> _Piece:
        joined = join_masks(self.x, self.mask, x, mask)
        return dataclasses.replace(self, x=torch.cat([self.x, x], dim=1), mask=joined)

    def detach(self) -> _Piece:
        return dataclasses.replace(self, before=self.before.detach(), x=self.x.detach())

    def select(self, rows: Tensor) -> _Piece:
        x = self.x.index_select(0, rows)
        return _Piece(self.start, self.before.select(rows), x, select_rows(self.mask, rows))


class FeedbackCache(Cache):
    """The memory of what was read, and the tokens after the last whole segment: a state of constant size.

    Padding never enters it, so a call that goes on need not repeat the mask of what came before.

    Tokens that come one by one are read by a walk that is set up once (`TokenWalk`), where neither gradients nor the
    removal of tokens will be asked for.

    Tokens can be removed (`crop`) once `activate_past_recording` was called, which assisted decoding does. Then the
    newest tokens' embeddings are kept, with memories from which they can be read a second time.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._recording = False
        self.reset()

    def reset(self) -> None:
        """Forgets all."""
        self._progress = Progress()
        self._walk: TokenWalk | None = None  # in place of the progress
        self._length = 0
        self._pieces: list[_Piece] = []
        self._is_removed = False  # whether the last piece lost tokens, so that it is to be read from its start

    def read(self, decoder: FeedbackDecoder, x: Tensor, mask: Tensor | None) -> Tensor:
        """Reads on.

        Args:
            x: (B, T, D), embeddings.
            mask: (B, T) bool, True at a real token; None if all are.

        Returns:
            states (B, T, D), which mean nothing at padding.
        """
        if self._recording or mask is not None or not (self._walk and self._walk.fits(decoder, x)):
            self._end_walk()
        if self._is_removed:
            piece = self._pieces[-1]
            _, self._progress = read_on(decoder, piece.x, piece.before, piece.mask)
            self._is_removed = False
        # Of a prompt, only the end can be removed; of a later call, all: it may check any number of guesses.
        early = max(0, x.shape[1] - RECORDED) if self._recording and not self._length else 0
        parts = [slice(0, early), slice(early, None)] if early else [slice(None)]
        return torch.cat([self._read(decoder, x[:, p], None if mask is None else mask[:, p]) for p in parts], dim=1)

    def _read(self, decoder: FeedbackDecoder, x: Tensor, mask: Tensor | None) -> Tensor:
        if self._recording:
            self._record(x, mask)
        elif mask is None and self._walk is None:
            self._walk = TokenWalk.start(decoder, x, self._progress)
        if self._walk is not None:
            self._progress = Progress()
            states = self._walk.read(x)
        else:
            states, self._progress = read_on(decoder, x, self._progress, mask)
        self._length += x.shape[1]
        return states

    def _end_walk(self) -> None:
        if self._walk is not None:
            self._progress, self._walk = self._walk.progress, None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets: no walk, which is of this process and of one model."""
        progress = self._progress if self._walk is None else self._walk.progress
        return {**self.__dict__, "_walk": None, "_progress": progress, "_pieces": list(self._pieces)}

    def _record(self, x: Tensor, mask: Tensor | None) -> None:
        if self._pieces and self._pieces[-1].x.shape[1] < PIECE:
            self._pieces[-1] = self._pieces[-1].extended(x, mask)
        else:
            self._pieces.append(_Piece(self._length, self._progress, x, mask))
        while len(self._pieces) > 1 and self._pieces[1].start <= self._pieces[-1].end - RECORDED:
            del self._pieces[0]

    def detach(self) -> Self:
        """Detaches it from the graph that made it, in place (truncated backpropagation); returns itself."""
        self._end_walk()
        self._progress = self._progress.detach()
        self._pieces = [piece.detach() for piece in self._pieces]
        return self

    # What `transformers` calls.

    def activate_past_recording(self) -> None:
        """From now on, tokens can be removed."""
        self._recording = True

    def crop(self, tokens_to_remove: int | Tensor) -> None:
        """Removes the newest tokens, so that all is as if they had never been read.

        Args:
            tokens_to_remove: minus their number, as `transformers` has it, which may give a tensor ().

        Raises:
            InputError: it is above 0, or the past was not recorded that far back.
        """
        tokens_to_remove = int(tokens_to_remove)  # added to a tensor, the length would change in place
        if tokens_to_remove > 0:
            raise InputError(f"tokens_to_remove is {tokens_to_remove}; give minus the number of tokens to remove")
        target = self._length + tokens_to_remove
        oldest = self._pieces[0].start if self._pieces else self._length
        if target < oldest:
            raise InputError(
                f"{-tokens_to_remove} tokens are to be removed, and {self._length - oldest} are recorded; call "
                f"activate_past_recording() before they are read, and remove at most {RECORDED}, or the last call"
            )
        if target == self._length:
            return
        while self._pieces and self._pieces[-1].start >= target:
            self._progress, self._is_removed = self._pieces.pop().before, False
        if self._pieces and self._pieces[-1].end > target:
            self._pieces[-1] = self._pieces[-1].first(target - self._pieces[-1].start)
            self._is_removed = True
        self._length = target

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the rows (B',) named by index (beam search)."""
        if self._walk is not None and not self._walk.can_select:
            self._end_walk()
        if self._walk is not None:
            self._walk.select(beam_idx)
        else:
            self._progress = self._progress.select(beam_idx)
        self._pieces = [piece.select(beam_idx) for piece in self._pieces]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Takes the rows (B',) named by index."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row, one copy after the other."""
        state = self._state()
        if state is not None:
            self.reorder_cache(torch.arange(state.shape[0], device=state.device).repeat_interleave(repeats))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens were read, padding included."""
        return self._length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: a text may be of any length."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many tokens there are with `query_length` new ones, and the place of the first."""
        return self._length + query_length, 0

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Not for this cache, which holds no keys and values of single layers."""
        raise InputError("a FeedbackCache is of a Feedback Transformer, and no other model can fill it")

    @property
    def batch_size(self) -> int:
        """B, or -1 before the first token."""
        state = self._state()
        return -1 if state is None else state.shape[0]

    @property
    def is_initialized(self) -> bool:
        """Whether anything was read."""
        return self._length > 0

    @property
    def is_compileable(self) -> bool:
        """False: how long the memory is changes from call to call."""
        return False

    @property
    def is_croppable(self) -> bool:
        """True: `crop` leaves no trace."""
        return True

    def _state(self) -> Tensor | None:
        """Any tensor (B, ...) of the state."""
        if self._walk is not None:
            return self._walk.like
        if self._pieces:
            return self._pieces[-1].x
        memory = self._progress.memory
        return self._progress.tail if memory is None else memory.tensors[0]
