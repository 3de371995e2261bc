"""What keeps the unit tests quick."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from kfp.dsl import pipeline_task


@pytest.fixture(autouse=True, scope="session")
def short_stacks() -> Iterator[None]:
    """kfp asks for the whole stack at every setting of a task, and a process of pytest-xdist has a frame
    without a file there, which `inspect` looks for in thousands of modules: 14 s a compiled pipeline.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(stack=lambda: [[""] * 4] * 2))
        yield
