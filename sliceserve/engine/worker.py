"""The engine process: ``python -m sliceserve.engine.worker ADDRESS``, started by EngineProcess."""

import logging
import os
import signal
import sys
import threading
import time

import msgspec
import zmq

from sliceserve.configs import EngineConfig
from sliceserve.engine.build import build_engine
from sliceserve.engine.loop import Peer, run_loop
from sliceserve.engine.messages import Answer, Command, EngineFailed

logger = logging.getLogger(__name__)


class _RouterMailbox:
    """A ROUTER socket: every peer's identity goes with its messages."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.bind(address)
        self._decoder = msgspec.msgpack.Decoder(Command)
        self._encoder = msgspec.msgpack.Encoder()
        self._peers: set[Peer] = set()

    def receive(self, timeout_s: float | None) -> list[tuple[Peer, Command]]:
        timeout_ms = None if timeout_s is None else int(timeout_s * 1000) + (timeout_s > 0)
        received: list[tuple[Peer, Command]] = []
        if not self._socket.poll(timeout_ms):
            return received
        while True:
            try:
                peer, body = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return received
            self._peers.add(peer)
            received.append((peer, self._decoder.decode(body)))

    def send(self, answers: list[tuple[Peer, Answer]]) -> None:
        by_peer: dict[Peer, list[Answer]] = {}
        for peer, answer in answers:
            by_peer.setdefault(peer, []).append(answer)
        for peer, batch in by_peer.items():
            self._socket.send_multipart([peer, self._encoder.encode(batch)])

    def fail(self, error: str) -> None:
        """Tell everybody who has asked so far; at the start, whoever asks within a second."""
        # The server and its workers may all be about to connect, in any order.
        deadline = time.monotonic() + (0.0 if self._peers else 1.0)
        while (left := deadline - time.monotonic()) > 0:
            self.receive(left)
        self.send([(peer, EngineFailed(error)) for peer in self._peers])
        self._context.destroy(linger=1000)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = msgspec.json.decode(sys.stdin.readline(), type=EngineConfig)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    mailbox = _RouterMailbox(sys.argv[1])
    try:
        run_loop(build_engine(config, tell=_tell), mailbox)
    except Exception as error:
        # The last line of defence: whatever ended the engine, the server must hear of it.
        # It tells the operator; here it would be said twice.
        if "SLICESERVE_DEBUG" in os.environ:
            logger.exception("the engine ended")
        mailbox.fail(str(error) or repr(error))
        sys.exit(1)


def _tell(sentence: str) -> None:
    print(sentence, flush=True)


def _end_with_parent() -> None:
    """Standard input closes when the server stops the engine, and when the server dies."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
