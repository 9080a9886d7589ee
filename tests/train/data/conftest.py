"""The web server that photographs of data sets are downloaded from."""

import threading
from collections.abc import Iterator

import pytest

from tests.train.data.d3_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
