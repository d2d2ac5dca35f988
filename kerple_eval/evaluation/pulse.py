"""Whether the other processes of a run still live, while each may compute for as long as its cell takes.

A collective call cannot tell a rank that is slow from one that is gone. So each rank but 0 and rank 0 send
each other a word every second from threads of their own, in a gloo group of their own, whose receiver gives
up after the run's patience (a connection that ends says so at once). Before every collective call of the
run all ranks meet by the same words, for which they wait while the words come. So the call itself lasts as
long as its data travel, and its group may have the same patience.

A process that is stopped, or whose machine is gone, sends no words; one that computes for ever does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from queue import Empty, SimpleQueue

import torch
import torch.distributed as dist

PATIENCE = timedelta(minutes=10)  # without a word of another rank
EVERY = 1.0  # seconds between words
GRACE = 5.0  # seconds that a rank waits for the others' last words
_ALIVE, _HERE, _LEAVES = range(3)


class RankLostError(Exception):
    """Another rank has ended: the run stops, and the same command continues from its finished cells."""

    def __str__(self) -> str:
        which = f" (rank {self.args[0]})" if self.args else ""
        return f"another process of this run{which} has ended or cannot be reached"


class Pulse:
    """This rank's side; every rank of the default group makes one at the same time."""

    def __init__(self, rank: int, size: int) -> None:
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.rank = rank
        peers = range(1, size) if rank == 0 else range(1)
        self._words: dict[int, SimpleQueue[int]] = {peer: SimpleQueue() for peer in peers}
        self._came = dict.fromkeys(peers, 0)  # how often each was here
        self._meetings = 0
        self._lost: int | None = None
        self._news = threading.Condition()
        self._threads = [
            threading.Thread(target=self._until_lost, args=(work, peer), daemon=True)
            for peer in peers
            for work in (self._tell, self._hear)
        ]
        for thread in self._threads:
            thread.start()

    def meet(self) -> None:
        """Return once every rank is here.

        Raises:
            RankLostError: one has ended, or gave no word for as long as the run's patience.
        """
        self._meetings += 1
        if self.rank:
            self._say(_HERE)
        with self._news:
            self._news.wait_for(lambda: self._all_here() or self._lost is not None)
            if not self._all_here():
                raise RankLostError(self._lost)
        if not self.rank:
            self._say(_HERE)

    def leave(self) -> None:
        """Tell the others that this rank takes part no more."""
        self._say(_LEAVES)  # which they answer by the same, unless they are gone
        until = time.monotonic() + GRACE
        for thread in self._threads if self._lost is None else ():
            thread.join(max(0.0, until - time.monotonic()))
        dist.destroy_process_group(self.group)

    def _all_here(self) -> bool:
        return all(count >= self._meetings for count in self._came.values())

    def _say(self, word: int) -> None:
        for words in self._words.values():
            words.put(word)

    def _until_lost(self, work: Callable[[int], None], peer: int) -> None:
        try:
            work(peer)
        except Exception:  # gloo's, whatever the reason; the group is destroyed when the run ends
            self._lose(peer)

    def _lose(self, peer: int) -> None:
        with self._news:
            self._lost = peer if self._lost is None else self._lost
            self._news.notify_all()

    def _tell(self, peer: int) -> None:
        word = _ALIVE
        while word != _LEAVES:
            try:
                word = self._words[peer].get(timeout=EVERY)
            except Empty:
                word = _ALIVE
            dist.send(torch.tensor([word]), peer, group=self.group)

    def _hear(self, peer: int) -> None:
        box = torch.tensor([_ALIVE])
        while box.item() != _LEAVES:
            dist.recv(box, peer, group=self.group)
            if box.item() == _HERE:
                with self._news:
                    self._came[peer] += 1
                    self._news.notify_all()
        self._words[peer].put(_LEAVES)
        self._lose(peer)
