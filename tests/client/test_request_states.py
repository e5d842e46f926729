"""One request of the client against servers that hold, forget and want whatever they may."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from split_peers import packet, welcome

from sliceserve.client.errors import RequestFailed
from sliceserve.client.request import SplitRequest
from sliceserve.client.stats import RequestStats
from sliceserve.configs import SamplingParams
from sliceserve.scheduler.prefix import block_digests
from sliceserve.transport.messages import Token


class OneRequest(RuleBasedStateMachine):
    """``had``: some server has had the packets below it. ``held``: this one has those below it."""

    @initialize(
        num_prompt=st.integers(1, 12),
        share_kept=st.floats(0, 1),
        block_size=st.sampled_from([1, 2, 3, 5, 0]),
    )
    def start(self, num_prompt, share_kept, block_size):
        self.limits = welcome(max_frame_tokens=3, block_size=block_size)
        self.prompt = list(range(num_prompt))
        self.stats = RequestStats()
        self.request = SplitRequest(
            1, self.prompt, SamplingParams(max_tokens=100), self.stats, 0.0, 0
        )
        self.num_known = num_prompt
        self.num_kept = self.num_encoded = int(share_kept * num_prompt)
        self.request.begin([packet(i, i) for i in range(self.num_kept)])
        self.announced = False
        self.had = 0
        self.sent = set()
        self.new_link()

    @rule(remembers=st.booleans())
    def new_link(self, remembers=False):
        self.request.start_link(0.0)
        self.remembers = remembers and self.announced
        if not self.remembers:
            self.held = 0
        self.asked = self.opened = False
        self.named = self.credit = 0

    @precondition(lambda self: self.num_encoded < self.num_known)
    @rule(count=st.integers(1, 5))
    def head_encodes(self, count):
        stop = min(self.num_known, self.num_encoded + count)
        self.request.take_packets(
            self.num_encoded, [packet(i, i) for i in range(self.num_encoded, stop)]
        )
        self.num_encoded = stop

    @rule()
    def client_writes(self):
        message = self.request.next_message(self.limits, 0.0)
        if not self.asked:
            self.hear_open(message)
        elif not self.opened:
            assert message is None
        elif message is None:
            assert self.held_next == min(self.credit, self.num_encoded)
        else:
            stop = message.first_position + len(message.packets)
            positions = range(message.first_position, stop)
            assert message.first_position == self.held_next
            assert stop <= min(self.credit, self.num_encoded)
            assert list(message.packets) == [packet(i, i) for i in positions]
            self.sent.update(positions)
            self.held = max(self.held, stop)
            self.held_next = stop
            self.had = max(self.had, stop)

    def hear_open(self, message):
        size = self.limits.block_size
        num_named = self.num_encoded if self.announced else self.num_kept
        packets = [packet(i, i) for i in range(num_named)]
        assert message.prefix == (block_digests(packets, size) if size else [])
        assert len(message.outputs) == self.num_known - len(self.prompt)
        self.asked = self.announced = True
        self.named = len(message.prefix) * size

    @precondition(lambda self: self.asked and not self.opened)
    @rule(data=st.data(), room=st.integers(0, 9))
    def server_opens(self, data, room):
        if not self.remembers:
            num_blocks = data.draw(st.integers(0, self.named // (self.limits.block_size or 1)))
            self.held = num_blocks * self.limits.block_size
        self.opened = True
        self.held_next = self.held
        self.credit = self.held + room
        self.had = max(self.had, self.held)
        self.request.open(self.held, self.credit, 0.0)

    @precondition(lambda self: self.asked and not self.opened)
    @rule(beyond=st.integers(1, 9))
    def server_lies(self, beyond):
        with pytest.raises(RequestFailed, match="sent or named"):
            self.request.open(max(self.had, self.named) + beyond, 100, 0.0)
        self.new_link()

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def server_wants(self, data):
        self.held_next = data.draw(st.integers(0, self.held))
        self.request.rewind(self.held_next, 0.0)

    @precondition(lambda self: self.opened)
    @rule(room=st.integers(0, 9))
    def server_grants(self, room):
        self.credit = max(self.credit, self.held + room)
        self.request.grant(self.held + room, 0.0)

    @precondition(lambda self: self.opened and self.held == self.num_known)
    @rule()
    def server_samples(self):
        self.request.take_token(
            Token(request_id=1, position=self.num_known, token_id=self.num_known), 0.0
        )
        self.num_known += 1

    @invariant()
    def every_position_is_counted_once(self):
        assert self.stats.num_packets == len(self.sent)
        assert self.stats.num_cached_server == self.had - len(self.sent)
        assert self.stats.num_tokens == self.num_known - len(self.prompt)


OneRequest.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestOneRequest = OneRequest.TestCase
