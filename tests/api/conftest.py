"""A tiny model with a tokenizer of bytes, and apps served on a loopback port."""

import asyncio
import contextlib

import openai
import pytest
import torch
from api_fakes import FakeEngine
from asgi_client import accounts_of

from sliceserve.api.backend import Backend
from sliceserve.api.hosting import serve as serve_backend
from sliceserve.api.listening import bind
from sliceserve.api.shutdown import Shutdown
from sliceserve.configs import (
    CacheConfig,
    CodecConfig,
    EngineConfig,
    HttpConfig,
    LayerConfig,
    ModelConfig,
    SchedulerConfig,
)
from sliceserve.engine.generation import ThinGenerator
from sliceserve.engine.in_process import InProcessEngine
from sliceserve.models.tokenizer import Tokenizer

_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """A folder with a random Llama of 6 layers, whose tokens are bytes after three special ones."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny-model")
    config = LlamaConfig(
        vocab_size=272,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocab.update({char: 3 + i for i, char in enumerate(alphabet)})
    rust = RustTokenizer(models.BPE(vocab, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    pretrained = PreTrainedTokenizerFast(
        tokenizer_object=rust,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=_TEMPLATE,
    )
    pretrained.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tokenizer(model_path):
    return Tokenizer.load(model_path)


@pytest.fixture
def fake(tokenizer):
    """Makes engines that answer every prompt with a text."""

    def make(answer="Hello, world", **info):
        return FakeEngine(tokenizer.encode(answer), **info)

    return make


@pytest.fixture
async def make_engine(model_path):
    """Makes engines over layers of the tiny model, each in a thread."""
    torch.set_num_threads(1)
    async with contextlib.AsyncExitStack() as stack:

        async def make(stop=None, **scheduler):
            config = EngineConfig(
                model=ModelConfig(model=str(model_path), dtype="float32", device="cpu"),
                layers=LayerConfig(stop=stop, cuts=(1, 3, 5)),
                cache=CacheConfig(num_tokens=2048),
                scheduler=SchedulerConfig(**scheduler),
                profiles="off",
            )
            engine = InProcessEngine(config, CodecConfig(name="float32"))
            await engine.start()
            stack.push_async_callback(engine.stop)
            return engine

        yield make


@pytest.fixture
def backend_of(tokenizer):
    def make(engine, name="tiny"):
        return Backend(
            models=(name,),
            fingerprint=engine.info.fingerprint,
            tokenizer=tokenizer,
            generator=ThinGenerator(engine) if engine.info.thin else None,
            engine=engine,
            stats=engine.stats,
        )

    return make


class Served:
    """A running server: ``url``, and the means to end it."""

    def __init__(self, url, shutdown, task):
        self.url = url
        self.split_url = url.replace("http", "ws", 1) + "/v1/split"
        self.shutdown = shutdown
        self.task = task


@pytest.fixture
async def serve(backend_of):
    """Serves engines over uvicorn on a free port, as `sliceserve serve` does."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            engine,
            *,
            api_keys=None,
            tenants=(),
            drain_timeout_s=5.0,
            split_limits=None,
            name="tiny",
            port=0,
            **http,
        ):
            sock = stack.enter_context(bind("127.0.0.1", port))
            shutdown = Shutdown()
            url = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(
                serve_backend(
                    backend_of(engine, name),
                    sock,
                    shutdown,
                    engine.stop,
                    url.set_result,
                    accounts=accounts_of(api_keys, tenants),
                    http=HttpConfig(drain_timeout_s=drain_timeout_s, **http),
                    split_limits=split_limits,
                )
            )

            async def stop():
                shutdown.requested.set()
                shutdown.urgent.set()
                await asyncio.gather(task, return_exceptions=True)

            stack.push_async_callback(stop)
            return Served(await url, shutdown, task)

        yield start


@pytest.fixture
def eventually():
    """Waits until a condition holds that the loop's other tasks make true."""

    async def wait(condition, timeout_s=10.0):
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "it never came true"
            await asyncio.sleep(0.005)

    return wait


@pytest.fixture
async def client_of():
    """Makes OpenAI's clients of served apps."""
    clients = []

    def make(served, api_key="none"):
        client = openai.AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key=api_key, max_retries=0, timeout=30
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()
