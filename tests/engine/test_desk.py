"""One engine for many peers: whose a request is, whatever is on its way when it moves."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sliceserve.engine.loop import Desk
from sliceserve.engine.messages import (
    AppendPackets,
    Cancel,
    Detach,
    GetInfo,
    Moved,
    Open,
    PeerGone,
    RequestOutput,
)
from sliceserve.engine.streams import EngineStreams

A, B, C = b"a", b"b", b"c"


class LedgerEngine:
    """Requests without a model: each is attached or detached, and ends when told. It has news of
    all of them at every step."""

    info = "the info"

    def __init__(self):
        self.attached = {}
        self.is_full = False
        self.commands = []
        self.finishing = set()

    def __contains__(self, request_id):
        return request_id in self.attached

    def handle(self, command):
        self.commands.append(command)
        if isinstance(command, Open) and self.is_full:
            self.attached.pop(command.request_id, None)
            refusal = RequestOutput(
                request_id=command.request_id, opened=True, finish_reason="error"
            )
            return [refusal]
        if isinstance(command, Open):
            self.attached[command.request_id] = True
            return [RequestOutput(request_id=command.request_id, opened=True)]
        if isinstance(command, Cancel):
            self.attached.pop(command.request_id, None)
        elif isinstance(command, Detach) and command.request_id in self.attached:
            self.attached[command.request_id] = False
        return []

    def expire(self):
        expired = [name for name, attached in self.attached.items() if not attached]
        for request_id in expired:
            del self.attached[request_id]
        return expired

    def step(self):
        outputs = []
        for request_id in list(self.attached):
            reason = "stop" if request_id in self.finishing else None
            outputs.append(RequestOutput(request_id=request_id, finish_reason=reason))
            if reason is not None:
                del self.attached[request_id]
        self.finishing.clear()
        return outputs or None


@pytest.fixture
def engine():
    return LedgerEngine()


@pytest.fixture
def desk(engine):
    desk = Desk(engine)
    yield desk
    desk.check()


def opening(request_id="r", layer=3):
    return Open(request_id=request_id, entry_layer=layer, num_prompt=2)


def test_a_request_moves_to_the_peer_that_opens_it_and_the_former_hears_of_it(engine, desk):
    desk.handle(A, opening())
    assert desk.handle(B, opening()) == [
        (A, Moved("r")),
        (B, RequestOutput(request_id="r", opened=True)),
    ]
    assert desk.step() == [(B, RequestOutput(request_id="r"))]
    # The same peer again: nobody else is concerned.
    assert [peer for peer, _ in desk.handle(B, opening())] == [B]


def test_what_a_former_owner_says_is_void(engine, desk):
    desk.handle(A, opening())
    desk.handle(B, opening())
    num_commands = len(engine.commands)
    for command in (Detach("r"), AppendPackets("r", 7, [b"packet"])):
        assert desk.handle(A, command) == []
    assert len(engine.commands) == num_commands
    desk.handle(B, Detach("r"))
    assert engine.attached == {"r": False}


def test_anybody_may_cancel_and_the_owner_hears_of_it(engine, desk):
    desk.handle(A, opening())
    assert desk.handle(B, Cancel("r")) == [(A, Moved("r"))]
    assert not engine.attached
    assert desk.handle(B, Cancel("r")) == []


def test_a_dead_peer_leaves_split_requests_behind_and_no_others(engine, desk):
    desk.handle(A, opening("split"))
    desk.handle(A, opening("thin", layer=0))
    desk.handle(B, opening("other", layer=0))
    assert desk.handle(C, PeerGone(A)) == []
    assert engine.attached == {"split": False, "other": True}
    # What it had sent before it died comes after the news.
    assert desk.handle(A, opening("late")) == desk.handle(A, GetInfo()) == []
    assert "late" not in engine
    assert [answer for peer, answer in desk.handle(B, opening("split")) if peer == B]
    assert engine.attached == {"split": True, "other": True}


def test_news_of_what_nobody_hears_ends_with_it(engine, desk):
    desk.handle(A, opening())
    desk.handle(A, Detach("r"))
    desk.expire()
    assert desk.step() is None
    desk.handle(A, opening())
    engine.finishing.add("r")
    assert desk.step() == [(A, RequestOutput(request_id="r", finish_reason="stop"))]
    desk.check()


class Door(EngineStreams):
    """A peer's end, with lines to the engine and back on which things take their time."""

    def __init__(self):
        super().__init__()
        self.up = deque()
        self.down = deque()

    def _post(self, command):
        self.up.append(command)


class ManyPeers(RuleBasedStateMachine):
    """Clients come through one door and go on through another, doors die, and all that is said
    arrives late. In the end every live request has one door that listens, and no other."""

    names = st.sampled_from(["r", "s", "thin"])
    peers = st.sampled_from([A, B, C])

    def __init__(self):
        super().__init__()
        self.engine = LedgerEngine()
        self.desk = Desk(self.engine)
        self.doors = {peer: Door() for peer in (A, B, C)}

    def _opened(self, request_id):
        return Open(
            request_id=request_id, entry_layer=0 if request_id == "thin" else 3, num_prompt=2
        )

    @rule(name=names, peer=peers)
    def open(self, name, peer):
        if peer in self.doors:
            self.doors[peer].open(self._opened(name))

    @rule(name=names, peer=peers, kind=st.sampled_from([Cancel, Detach]))
    def let_go(self, name, peer, kind):
        if peer in self.doors and name in self.doors[peer]._streams:
            self.doors[peer].send(kind(name))

    @rule(peer=peers)
    def one_command_arrives(self, peer):
        if peer in self.doors and self.doors[peer].up:
            self._deliver(self.desk.handle(peer, self.doors[peer].up.popleft()))

    @rule(peer=peers)
    def one_answer_arrives(self, peer):
        if peer in self.doors and self.doors[peer].down:
            self.doors[peer]._dispatch([self.doors[peer].down.popleft()])

    @rule(name=names)
    def step(self, name):
        self.engine.finishing.add(name)
        self._deliver(self.desk.step() or [])

    @rule()
    def fill_or_empty(self):
        self.engine.is_full = not self.engine.is_full

    @rule()
    def expire(self):
        self.desk.expire()

    @precondition(lambda self: len(self.doors) > 1)
    @rule(peer=peers, num_late=st.integers(0, 3))
    def die(self, peer, num_late):
        if peer not in self.doors:
            return
        late = list(self.doors.pop(peer).up)[:num_late]
        self._deliver(self.desk.handle(b"the server", PeerGone(peer)))
        for command in late:
            self._deliver(self.desk.handle(peer, command))

    def _deliver(self, answers):
        for peer, answer in answers:
            if peer in self.doors:
                self.doors[peer].down.append(answer)

    @invariant()
    def books_balance(self):
        self.desk.check()
        for name in self.engine.attached:
            assert name in self.desk._owners

    def teardown(self):
        while any(door.up or door.down for door in self.doors.values()):
            for peer in self.doors:
                self.one_command_arrives(peer)
                self.one_answer_arrives(peer)
        for name, attached in self.engine.attached.items():
            listening = [peer for peer, door in self.doors.items() if name in door._streams]
            assert listening == ([self.desk._owners[name].peer] if attached else [])
        for door in self.doors.values():
            assert door._streams.keys() <= self.engine.attached.keys()
            assert not +door._unanswered


TestManyPeers = ManyPeers.TestCase
TestManyPeers.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
