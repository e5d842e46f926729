"""The engine's life: take commands, step, send answers, until told to stop."""

from typing import NamedTuple, Protocol

from sliceserve.engine.engine import Engine
from sliceserve.engine.messages import (
    Answer,
    Cancel,
    Command,
    Detach,
    GetInfo,
    GetStats,
    Moved,
    Open,
    PeerGone,
    RequestCommand,
)

# Who asked: a peer of the mailbox.
Peer = bytes


class Mailbox(Protocol):
    """Where commands come from and answers go to."""

    def receive(self, timeout_s: float | None) -> "list[tuple[Peer, Command]] | None":
        """All commands that wait; up to ``timeout_s`` (None: for ever, 0: not at all) for the
        first. None: the engine shall end."""
        ...

    def send(self, answers: "list[tuple[Peer, Answer]]") -> None:
        """What is for a peer that has gone is dropped."""
        ...


def run_loop(engine: Engine, mailbox: Mailbox) -> None:
    """Returns when the mailbox closes."""
    desk = Desk(engine)
    idle = False
    while True:
        desk.expire()
        received = mailbox.receive(engine.seconds_to_work() if idle else 0.0)
        if received is None:
            return
        answers = [answer for peer, command in received for answer in desk.handle(peer, command)]
        outputs = desk.step()
        idle = outputs is None
        answers += outputs or ()
        if answers:
            mailbox.send(answers)


class _Owner(NamedTuple):
    peer: Peer
    # Its client can come back for it, through this peer or another.
    can_move: bool


class Desk:
    """One engine for many peers. A request belongs to the peer that opened it last: news of it goes
    there, and what others say of it is void, for it was on its way when the request moved."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._owners: dict[str, _Owner] = {}
        self._gone: set[Peer] = set()

    def handle(self, peer: Peer, command: Command) -> list[tuple[Peer, Answer]]:
        """Take a command; the answers that there are at once, and for whom."""
        if peer in self._gone:
            # Its last words, overtaken by the news of its death.
            return []
        if isinstance(command, GetInfo):
            return [(peer, self._engine.info)]
        if isinstance(command, GetStats):
            return [(peer, self._engine.stats())]
        if isinstance(command, PeerGone):
            self._bury(command.peer)
            return []
        return self._handle(peer, command)

    def step(self) -> list[tuple[Peer, Answer]] | None:
        """As `Engine.step`, addressed."""
        outputs = self._engine.step()
        if outputs is None:
            return None
        answers: list[tuple[Peer, Answer]] = []
        for output in outputs:
            answers.append((self._owners[output.request_id].peer, output))
            if output.finish_reason is not None:
                del self._owners[output.request_id]
        return answers

    def expire(self) -> None:
        """As `Engine.expire`."""
        for request_id in self._engine.expire():
            del self._owners[request_id]

    def check(self) -> None:
        """Raise AssertionError unless every owned request is live."""
        strays = [request_id for request_id in self._owners if request_id not in self._engine]
        assert not strays, f"requests that have ended still have owners: {strays}"

    def _handle(self, peer: Peer, command: RequestCommand) -> list[tuple[Peer, Answer]]:
        request_id = command.request_id
        answers: list[tuple[Peer, Answer]] = []
        owner = self._owners.get(request_id)
        if owner is not None and owner.peer != peer:
            if not isinstance(command, Open | Cancel):
                return []
            answers.append((owner.peer, Moved(request_id)))
        if isinstance(command, Open):
            self._owners[request_id] = _Owner(peer, can_move=command.entry_layer > 0)
        answers += [(peer, answer) for answer in self._engine.handle(command)]
        if request_id not in self._engine:
            self._owners.pop(request_id, None)
        return answers

    def _bury(self, peer: Peer) -> None:
        left = [(name, owner) for name, owner in self._owners.items() if owner.peer == peer]
        for request_id, owner in left:
            self._handle(peer, Detach(request_id) if owner.can_move else Cancel(request_id))
        self._gone.add(peer)
