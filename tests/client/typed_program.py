"""What a user may write, read by a type checker and never run."""

import asyncio
from pathlib import Path

from sliceserve import (
    AsyncSplitLLM,
    ClientConfig,
    Completion,
    ConnectionRefused,
    RequestFailed,
    RequestTimeout,
    SamplingParams,
    SplitError,
    SplitLLM,
)


def in_a_program(path: Path) -> list[str]:
    messages = [{"role": "user", "content": "Hello"}]
    with SplitLLM("http://127.0.0.1:8000", split=8, codec="int8", max_retries=0) as llm:
        one: Completion = llm.generate("Once", max_tokens=8, stop=["\n"], priority=-1)
        many: list[Completion] = llm.generate(["Once", "Twice"], SamplingParams(temperature=0.5))
        ids: Completion = llm.generate([1, 2, 3], timeout_s=30.0)
        turn = llm.chat(messages, top_p=0.9, seed=7, logit_bias={5: -100.0})
        pieces = [chunk.text for chunk in llm.stream(messages, temperature=0.7)]
        sent: float = llm.stats.uplink_bytes_per_token
        shown: str = f"{llm.state} {llm.split} {llm.num_layers} {llm.codec} {sent}"
    with SplitLLM.from_config(path, timeout_s=10.0) as llm:
        pieces.append(llm.chat("Hello").text)
    return [one.text, ids.text, turn.text, shown, *pieces, *(each.text for each in many)]


async def on_a_loop() -> list[str]:
    async with AsyncSplitLLM.from_config(ClientConfig(split=8), server="http://a") as llm:
        one: Completion = await llm.generate("Once", logprobs=1)
        many: list[Completion] = await llm.generate(["Once"], min_p=0.1)
        try:
            return [chunk.text async for chunk in llm.stream("Once", timeout_s=1.0)]
        except RequestTimeout:
            return [one.text]
        except RequestFailed as error:
            return [error.code, str(error.retry_after_s)]
        except ConnectionRefused as error:
            return [error.code if error.may_retry else many[0].text]
        except SplitError as error:
            return [str(error)]


def mistaken(llm: SplitLLM) -> None:
    llm.generate("Once", max_token=8)  # type: ignore[call-overload]
    llm.chat("Once", temperature="hot")  # type: ignore[arg-type]
    SplitLLM(splt=8)  # type: ignore[call-arg]


asyncio.run(on_a_loop())
