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
        early_tokens=st.sampled_from([0, 4, 512]),
    )
    def start(self, num_prompt, share_kept, block_size, early_tokens):
        self.limits = welcome(max_frame_tokens=3, block_size=block_size, early_tokens=early_tokens)
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
        self.named = self.credit = self.early = self.next = 0
        self.on_its_way = []

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
            return
        most = min(self.credit if self.opened else self.early, self.num_encoded)
        if message is None:
            assert self.next >= most
            return
        stop = message.first_position + len(message.packets)
        positions = range(message.first_position, stop)
        assert message.first_position == self.next
        assert stop <= most
        assert list(message.packets) == [packet(i, i) for i in positions]
        self.sent.update(positions)
        self.next = stop
        self.had = max(self.had, stop)
        if self.opened:
            self.held = max(self.held, stop)
        else:
            self.on_its_way.append(stop)

    def hear_open(self, message):
        size = self.limits.block_size
        num_named = self.num_encoded if self.announced else self.num_kept
        packets = [packet(i, i) for i in range(num_named)]
        assert message.prefix == (block_digests(packets, size) if size else [])
        assert len(message.outputs) == self.num_known - len(self.prompt)
        is_new = not self.announced and not message.prefix
        self.early = self.limits.early_tokens if is_new else 0
        self.asked = self.announced = True
        self.named = len(message.prefix) * size

    @precondition(lambda self: self.asked and not self.opened)
    @rule(data=st.data(), room=st.integers(0, 9))
    def server_opens(self, data, room):
        if not self.remembers:
            num_blocks = data.draw(st.integers(0, self.named // (self.limits.block_size or 1)))
            self.held = num_blocks * self.limits.block_size
        self.opened = True
        self.credit = self.held + room
        self.had = max(self.had, self.held)
        self.request.open(self.held, self.credit, 0.0)
        self.next = max(self.next, self.held)
        for stop in self.on_its_way:
            if stop > self.credit:
                self.wants(self.held)
                return
            self.held = stop

    def wants(self, position):
        self.next = position
        self.request.rewind(position, 0.0)

    @precondition(lambda self: self.asked and not self.opened)
    @rule(beyond=st.integers(1, 9))
    def server_lies(self, beyond):
        with pytest.raises(RequestFailed, match="sent or named"):
            self.request.open(max(self.had, self.named) + beyond, 100, 0.0)
        self.new_link()

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def server_wants(self, data):
        self.wants(data.draw(st.integers(0, self.held)))

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
