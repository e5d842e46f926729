"""Engines driven by hand, one step at a time."""

from sliceserve.engine.messages import AppendPackets, AppendTokens, Cancel, Open
from sliceserve.scheduler.prefix import block_digests


def finish(engine, num_steps=2000):
    """Step until there is nothing to do; all outputs, checked as they come."""
    outputs = []
    for _ in range(num_steps):
        step = engine.step()
        engine.check()
        if step is None:
            return outputs
        outputs += step
    raise AssertionError(f"the engine still had work after {num_steps} steps")


class SplitRun:
    """Heads at several cuts and one tail, in lockstep: what clients and server do over a wire.

    Packets are sent as far as the tail gives credit for them.
    """

    def __init__(self, tail, heads, codec="float32/1"):
        """``heads``: cut → head engine."""
        self.tail = tail
        self.heads = heads
        self.codec = codec
        self.cuts = {}
        self.tokens = {}
        self.packets = {}
        self.credit = {}
        self.num_sent = {}
        self.finish_reasons = {}
        # Split requests: the packets that their heads began with, and how many the tail had too.
        self.reused = {}
        # Outputs of requests that were opened by other means.
        self.others = []

    def open(self, request_id, prompt, cut, sampling):
        self.cuts[request_id] = cut
        self.tokens[request_id] = []
        if cut > 0:
            (opened,) = self.heads[cut].handle(_open(request_id, prompt, sampling))
            known = self.packets[request_id] = opened.packets
            (answer,) = self.tail.handle(
                Open(
                    request_id=request_id,
                    entry_layer=cut,
                    num_prompt=len(prompt),
                    prompt=list(prompt) if sampling.needs_prompt else [],
                    sampling=sampling,
                    codec=self.codec,
                    prefix=block_digests(known, self.tail.info.block_size or 1),
                    may_queue=True,
                )
            )
            assert answer.opened and answer.num_cached <= answer.wanted <= len(known)
            self.reused[request_id] = (len(known), answer.wanted)
            self.credit[request_id], self.num_sent[request_id] = answer.credit, answer.wanted
            self._send(request_id)
        else:
            self.take(self.tail.handle(_open(request_id, prompt, sampling)))

    def step(self):
        """One step of every engine that has work; whether any had."""
        any_work = False
        for engine in (*self.heads.values(), self.tail):
            outputs = engine.step()
            engine.check()
            any_work |= outputs is not None
            self.take(outputs or ())
        return any_work

    def run(self, num_steps=2000):
        for _ in range(num_steps):
            if not self.step():
                return self.tokens
        raise AssertionError(f"still work to do after {num_steps} steps")

    def take(self, outputs):
        for output in outputs:
            request_id = output.request_id
            if request_id not in self.cuts:
                self.others.append(output)
                continue
            assert output.error is None, output.error
            if output.packets:
                assert output.start == len(self.packets[request_id])
                self.packets[request_id] += output.packets
                self._send(request_id)
            if output.credit > self.credit.get(request_id, output.credit):
                self.credit[request_id] = output.credit
                self._send(request_id)
            for token in output.tokens:
                self.tokens[request_id].append(token.token_id)
                if self.cuts[request_id] > 0 and output.finish_reason is None:
                    head = self.heads[self.cuts[request_id]]
                    self.take(head.handle(AppendTokens(request_id, output.start, [token.token_id])))
            if output.finish_reason is not None:
                self.finish_reasons[request_id] = output.finish_reason
                self.end_head(request_id)

    def _send(self, request_id):
        start, packets = self.num_sent[request_id], self.packets[request_id]
        stop = min(len(packets), self.credit[request_id])
        if start < stop:
            self.num_sent[request_id] = stop
            self.take(self.tail.handle(AppendPackets(request_id, start, packets[start:stop])))

    def end_head(self, request_id):
        if self.cuts[request_id] > 0:
            self.heads[self.cuts[request_id]].handle(Cancel(request_id))


def _open(request_id, prompt, sampling):
    return Open(
        request_id=request_id, num_prompt=len(prompt), prompt=list(prompt), sampling=sampling
    )
