import asyncio

import pytest
from split_peers import Pair, ScriptedServer


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
async def pair(server):
    """A started session; at the end nothing of it may be left, here or on the server."""
    pair = Pair(server, timeout_s=5.0, resume_timeout_s=2.0)
    await pair.session.start()
    yield pair
    await pair.session.close()
    await pair.settled()
    assert not server.violations
    assert not server.live
    await asyncio.gather(*server.tasks)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in left if "pair" not in repr(task)]
