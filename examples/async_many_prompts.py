"""Complete many prompts at once over one connection, and stream another beside them.

sliceserve serve
python examples/async_many_prompts.py [http://127.0.0.1:8000]
"""

import asyncio
import sys

from sliceserve import AsyncSplitLLM

CAPITALS = [f"The capital of {c} is" for c in ("France", "Japan", "Kenya", "Peru", "Norway")]


async def main() -> None:
    async with AsyncSplitLLM(*sys.argv[1:]) as llm:
        batch = asyncio.create_task(llm.generate(CAPITALS, max_tokens=12, stop="."))
        async for chunk in llm.stream("Once upon a time", max_tokens=40, temperature=0.8, seed=1):
            print(chunk.text, end="", flush=True)
        print()
        for prompt, completion in zip(CAPITALS, await batch, strict=True):
            print(f"{prompt}{completion.text}  [{completion.stats.ttft_s * 1e3:.0f} ms to begin]")


asyncio.run(main())
