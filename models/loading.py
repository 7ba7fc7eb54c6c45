"""Batches on their way to a device: gathered, pinned and sent while the device computes on the one before."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue

import torch
from torch import Tensor

from models.panel import Batch, WindowLoader

AHEAD = 2
"""Batches that wait for the device at most."""
TURN = 0.1
"""Seconds after which a waiting thread looks whether anybody still wants its batches."""


def ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on ``device``, in order.

    On CUDA a thread gathers and pins the next ones meanwhile and their copies do not hold up the caller; elsewhere nothing
    is done but what is asked for. An error in ``batches`` is raised where its batch would have come. The thread ends with the
    iterator, read to its end or not.
    """
    if device.type != "cuda":
        for batch in batches:
            yield moved(batch, device)
        return
    for batch in in_background(batches):
        yield moved(batch, device)


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``; of an accelerator's, the lengths of the histories stay here as well, for `host_lengths`."""
    there = {key: value.to(device, non_blocking=device.type == "cuda") for key, value in batch.items()}
    return there if device.type == "cpu" else {**there, "host_lengths": host_lengths(batch)}


def host_lengths(batch: Batch) -> Tensor:
    """Lengths of the histories ``(B,)`` that can be read without waiting for a device, where `moved` has kept them."""
    return batch.get("host_lengths", batch["encoder_lengths"])


@dataclass
class Background:
    """A loader whose batches a thread gathers and pins ahead of whoever moves them to the device without waiting."""

    loader: WindowLoader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return in_background(self.loader)


def in_background(batches: Iterable[Batch], pin: bool = True) -> Iterator[Batch]:
    """The same batches, read by a thread up to `AHEAD` of them ahead, in pinned memory where ``pin`` holds."""
    queue: Queue[Batch | BaseException | None] = Queue(AHEAD)
    left = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not left.is_set():
            try:
                return queue.put(item, timeout=TURN)
            except Full:
                continue

    def read() -> None:
        try:
            for batch in batches:
                put({key: value.pin_memory() for key, value in batch.items()} if pin else batch)
                if left.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = queue.get(timeout=TURN)
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join()
