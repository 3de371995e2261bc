"""One undisturbed run of every step, for all faults to start from."""

import pytest
from steps import Undisturbed, run_undisturbed


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed") / "user")
