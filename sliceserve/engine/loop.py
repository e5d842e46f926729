"""The engine's life: take commands, step, send answers, until told to stop."""

from typing import Protocol

from sliceserve.engine.engine import Engine
from sliceserve.engine.messages import Answer, Command, GetInfo, GetStats, Open

# Who asked: a peer of the mailbox. Answers about a request go to whoever opened it last.
Peer = bytes


class Mailbox(Protocol):
    """Where commands come from and answers go to."""

    def receive(self, timeout_s: float | None) -> "list[tuple[Peer, Command]] | None":
        """All commands that wait; up to ``timeout_s`` (None: for ever, 0: not at all) for the
        first. None: the engine shall end."""
        ...

    def send(self, answers: "list[tuple[Peer, Answer]]") -> None: ...


def run_loop(engine: Engine, mailbox: Mailbox) -> None:
    """Returns when the mailbox closes."""
    owners: dict[str, Peer] = {}
    idle = False
    while True:
        for request_id in engine.expire():
            owners.pop(request_id, None)
        received = mailbox.receive(engine.seconds_to_expiry() if idle else 0.0)
        if received is None:
            return
        answers: list[tuple[Peer, Answer]] = []
        for peer, command in received:
            if isinstance(command, GetInfo):
                answers.append((peer, engine.info))
            elif isinstance(command, GetStats):
                answers.append((peer, engine.stats()))
            else:
                if isinstance(command, Open):
                    owners[command.request_id] = peer
                answers += [(peer, answer) for answer in engine.handle(command)]
                if command.request_id not in engine:
                    owners.pop(command.request_id, None)
        outputs = engine.step()
        idle = outputs is None
        for output in outputs or ():
            answers.append((owners[output.request_id], output))
            if output.finish_reason is not None:
                del owners[output.request_id]
        if answers:
            mailbox.send(answers)
