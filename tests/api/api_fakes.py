"""An engine without a model, which follows the contract of EngineClient to the letter."""

import asyncio
import itertools
from collections import deque

from sliceserve.engine.messages import (
    AppendPackets,
    Cancel,
    Detach,
    EngineInfo,
    EngineStats,
    GetStats,
    Open,
    RequestOutput,
    SegmentStats,
)
from sliceserve.engine.streams import EngineStreams
from sliceserve.scheduler.plan import Logprob, SampledToken


class FakeEngine(EngineStreams):
    """Answers every prompt with ``answer`` (token ids), then the end token ``eos``.

    A request at layer 0 gets a token each time the loop turns, while ``running`` is set. One from
    above gets its next token when all its packets are here. ``refusal`` (code, message, seconds)
    refuses every request; ``fail_after`` fails each after so many tokens, ``pause_after`` clears
    ``running``. ``cached`` are the digests whose blocks it holds; ``num_cached`` is what it says of
    every request. ``commands`` records.
    """

    def __init__(self, answer, eos=2, **info):
        super().__init__()
        self.answer = list(answer)
        self.eos = eos
        self.window = 64
        self.refusal = None
        self.fail_after = None
        self.pause_after = None
        self.cached = set()
        self.num_cached = 0
        self.commands = []
        self.running = asyncio.Event()
        self.running.set()
        self._tasks = {}
        self._known = {}
        self._opens = {}
        defaults = {
            "model": "fake",
            "model_path": "",
            "fingerprint": "f" * 64,
            "dtype": "float32",
            "device": "cpu",
            "num_layers": 6,
            "hidden_size": 8,
            "vocab_size": 300,
            "max_model_len": 128,
            "first_layer": 0,
            "stop_layer": 6,
            "cuts": [1, 3, 5],
            "thin": True,
            "codecs": ["float32/1", "slicer/1"],
            "eos_token_ids": [eos],
        }
        self._info = EngineInfo(**{**defaults, **info})

    def sent(self, kind):
        return [command for command in self.commands if isinstance(command, kind)]

    @property
    def num_generating(self):
        return sum(not task.done() for task in self._tasks.values())

    async def start(self):
        return self._info

    async def stop(self):
        self.die("the engine was stopped")

    def die(self, why):
        for task in self._tasks.values():
            task.cancel()
        self._die(why)

    def tell(self, request_id, **news):
        output = RequestOutput(request_id=request_id, num_cached=self.num_cached, **news)
        self._dispatch([output])

    def _post(self, command):
        if isinstance(command, GetStats):
            self._dispatch([self._stats()])
            return
        self.commands.append(command)
        match command:
            case Open():
                self._begin(command)
            case AppendPackets():
                self._append(command)
            case Cancel() | Detach():
                if (task := self._tasks.pop(command.request_id, None)) is not None:
                    task.cancel()
                if isinstance(command, Cancel):
                    self._known.pop(command.request_id, None)

    def _stats(self):
        return EngineStats(
            num_live=len(self._tasks),
            num_running=self.num_generating,
            num_waiting=0,
            num_detached=0,
            num_steps_total=7,
            num_tokens_total=70,
            num_sampled_total=7,
            num_preempted_total=3,
            busy_seconds=1.5,
            held_packet_bytes=0,
            segments=[SegmentStats(first=0, stop=6, num_blocks=10, num_free=4, num_cached=3)],
        )

    def _begin(self, command):
        name = command.request_id
        if self.refusal is not None:
            code, message, seconds = self.refusal
            self.tell(
                name,
                opened=True,
                finish_reason="error",
                error_code=code,
                error=message,
                retry_after_s=seconds,
            )
            return
        self._opens[name] = command
        hits = itertools.takewhile(self.cached.__contains__, command.prefix)
        known = self._known.setdefault(name, self._info.block_size * len(list(hits)))
        self.tell(name, opened=True, num_computed=known, wanted=known, credit=known + self.window)
        if command.entry_layer == 0:
            self._tasks[name] = asyncio.create_task(self._generate(command))

    async def _generate(self, command):
        script = deque([*self.answer, self.eos])
        for num_tokens in range(command.sampling.max_tokens):
            await asyncio.sleep(0)
            await self.running.wait()
            if num_tokens == self.fail_after:
                self.tell(
                    command.request_id,
                    finish_reason="error",
                    error_code="internal_error",
                    error="a fuse blew",
                )
                return
            token = script.popleft()
            is_last = num_tokens == command.sampling.max_tokens - 1
            reason = "stop" if token == self.eos else "length" if is_last else None
            self.tell(
                command.request_id,
                start=command.num_prompt + num_tokens,
                tokens=[_sampled(token, command.sampling)],
                finish_reason=reason,
            )
            if reason is not None:
                return
            if num_tokens + 1 == self.pause_after:
                self.running.clear()

    def _append(self, command):
        name = command.request_id
        opening = self._opens[name]
        known = self._known[name]
        if command.start > known:
            self.tell(name, wanted=known, credit=known + self.window)
            return
        known = max(known, command.start + len(command.packets))
        if known == self._known[name]:
            return
        self._known[name] = known
        num_sampled = known - opening.num_prompt
        if num_sampled < 0:
            self.tell(name, num_computed=known, credit=known + self.window, seconds=0.001)
            return
        token = [*self.answer, self.eos][num_sampled]
        is_last = num_sampled + 1 == opening.sampling.max_tokens
        self.tell(
            name,
            num_computed=known,
            # It is raised now and then, as an engine does.
            credit=known // 16 * 16 + self.window,
            start=known,
            tokens=[_sampled(token, opening.sampling)],
            seconds=0.002,
            finish_reason="stop" if token == self.eos else "length" if is_last else None,
        )


def _sampled(token, sampling):
    if sampling.logprobs is None:
        return SampledToken(token)
    top = tuple(Logprob(token + i, -0.5 - i) for i in range(sampling.logprobs))
    return SampledToken(token, -0.5, top)
