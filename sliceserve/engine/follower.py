"""A rank above 0: ``python -m sliceserve.engine.follower FD``, started by ``parallel.Leader``.

FD is a pipe to the leader. Down it come a ``Start`` and then a ``Pass`` for every step; up it go a
word when this process is ready, and the reason when it fails.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection

import msgspec
import torch

from sliceserve.engine.layers import Layers
from sliceserve.engine.parallel import Pass, RankGroup, RanksLost, Start

# Messages from the leader.
Inbox = queue.SimpleQueue[bytes]


def main() -> None:
    # Ctrl-C in the terminal is for the leader, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    try:
        pipe.send_bytes(b"ready")
        _follow(inbox)
    except RanksLost:
        # The leader has lost the same one, knows why, and ends this process.
        threading.Event().wait()
    except Exception as error:
        # The last line of defence: whatever ended the rank, the leader must hear of it.
        with contextlib.suppress(OSError):
            pipe.send_bytes((str(error) or repr(error)).encode())
        sys.exit(1)


def _receive(pipe: Connection, inbox: Inbox) -> None:
    """Messages as they come, whatever the main thread waits for; the pipe's end ends the
    process."""
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            message = b""
        if not message:
            os._exit(0)
        inbox.put(message)


@torch.inference_mode()
def _follow(inbox: Inbox) -> None:
    start = msgspec.msgpack.decode(inbox.get(), type=Start)
    group = RankGroup(start)
    layers = Layers.load(start.config, group)
    buffer = layers.new_hidden(start.config.scheduler.max_tokens_per_step)
    decoder = msgspec.msgpack.Decoder(Pass)
    while True:
        step = decoder.decode(inbox.get())
        batch = layers.batch(step.requests)
        hidden = buffer[: batch.num_rows]
        group.broadcast(hidden)
        layers.forward(hidden, batch)
        for rows in step.logit_rows:
            layers.decoder.logits(hidden[rows])


if __name__ == "__main__":
    main()
