"""Use the split model from a program that knows nothing of it, by OpenAI's own client.

sliceserve serve
sliceserve gateway                 # on the device; OpenAI's API on port 8001
pip install openai
python examples/gateway_openai_client.py [http://127.0.0.1:8001]
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8001"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Name three uses of a paper clip."}],
    max_tokens=100,
    stream=True,
)
for event in stream:
    print(event.choices[0].delta.content or "", end="", flush=True)
print()
