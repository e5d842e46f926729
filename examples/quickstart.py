"""Answer a question with a model whose first layers run here and whose others run on a server.

sliceserve serve
python examples/quickstart.py [http://127.0.0.1:8000]
"""

import sys

from sliceserve import SplitLLM

with SplitLLM(*sys.argv[1:]) as llm:
    print(llm)
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    for chunk in llm.stream(question, max_tokens=100):
        print(chunk.text, end="", flush=True)
    print(f"\n{llm.stats.uplink_bytes_per_token:.0f} bytes went up for each token,", end=" ")
    print(f"{llm.stats.uplink_reduction_vs_fp16:.1f} times fewer than in fp16")
