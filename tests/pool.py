"""How several processes share the suites, with `--dist loadfile`: what a fixture makes is made once."""

from xdist.scheduler import LoadFileScheduling

# files that share what is made once a session
TOGETHER = {
    "the three runs of the graphs": (
        "container/test_containers",
        "container/test_services",
        "pipeline/test_kfp_local",
    ),
    "the undisturbed run": (
        "faults/test_bytes",
        "faults/test_disk",
        "faults/test_servers",
        "faults/test_steps",
    ),
}
SCOPES = {f"tests/{name}.py": scope for scope, names in TOGETHER.items() for name in names}
# tests that share nothing, and are long
APART = {"tests/pipeline/test_counts.py", "tests/pipeline/test_dvc_repro.py"}


class Pool(LoadFileScheduling):
    """A process takes the next file when it has done its last one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return nodeid if file in APART else SCOPES.get(file, file)
