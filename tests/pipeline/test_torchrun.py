"""`crossearth train` under torchrun: the curve of one process, one writer, stopped and gone on with."""

import csv
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from services import free_port
from training_folder import RECIPE, environment, write_folder

ALONE = ["--standalone"]
MODEL = ["curves.csv", "model.json", "model.safetensors", "reference.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with an ingested source."""
    write_folder(tmp_path)
    return tmp_path


def start(
    folder: Path,
    processes: int,
    train: str = "train",
    torchrun: Sequence[str] = ALONE,
    host: Sequence[str] = (),
    **changes: object,
) -> "subprocess.Popen[str]":
    """Starts an agent; `host` are the words that put a command onto another one."""
    write_folder(folder, **changes)
    command = [*host, "torchrun", *torchrun, f"--nproc-per-node={processes}", "--no-python"]
    return subprocess.Popen(
        [*command, "bash", "-c", f"exec crossearth {train} {RECIPE}"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_state(folder: Path, training: "subprocess.Popen[str]", name: str) -> None:
    states, end = folder / f"artifacts/models/{RECIPE}.checkpoints", time.monotonic() + 120
    while training.poll() is None and not any(states.glob(name)) and time.monotonic() < end:
        time.sleep(0.05)


def kill_a_process(training: "subprocess.Popen[str]") -> None:
    """Of those that torchrun started, the last."""
    started = [each for each in psutil.Process(training.pid).children() if "train" in each.cmdline()]
    started[-1].kill()


def end(*trainings: "subprocess.Popen[str]") -> str:
    """Waits until all have ended well; what the last one said on its standard error."""
    for training in trainings:
        words = training.communicate(timeout=120)[1]
        assert training.returncode == 0, words
    return words


def curve(folder: Path) -> list[float]:
    """Takes the trained model away and returns its losses."""
    model = folder / f"artifacts/models/{RECIPE}"
    assert sorted(path.name for path in model.iterdir()) == MODEL
    with (model / "curves.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    model.rename(folder / f"moved-{time.monotonic_ns()}")
    return losses


def test_two_processes_give_the_curve_of_one(folder: Path) -> None:
    curves = []
    for processes in (1, 2):
        training = start(folder, processes)
        written, words = training.communicate(timeout=120)
        assert training.returncode == 0, words
        assert "Warning" not in words
        assert written.count("wrote") == 1
        curves.append(curve(folder))
    assert len(curves[0]) == 8
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_a_process_that_is_killed_is_started_again_and_the_curve_is_the_same(folder: Path) -> None:
    numbers = {"iterations": 40, "checkpoint_every": 5}
    training = start(folder, 2, torchrun=[*ALONE, "--max-restarts=1"], **numbers)
    wait_for_state(folder, training, "step_*")
    kill_a_process(training)
    end(training)
    restarted = curve(folder)
    end(start(folder, 2, **numbers))
    assert restarted == curve(folder)


def test_two_nodes_give_the_curve_of_one_also_when_one_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two agents of torchrun, which know no more of each other than an address."""
    numbers = {"iterations": 40, "checkpoint_every": 5}
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=nodes"]
    elastic = ["--nnodes=2", "--max-restarts=1", *meeting]
    refused = [start(folder, 1, torchrun=elastic, **numbers) for _ in range(2)]
    words = [node.communicate(timeout=120)[1] for node in refused]
    assert all("export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every node" in each for each in words), words

    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    nodes = [start(folder, 1, torchrun=elastic, **numbers) for _ in range(2)]
    wait_for_state(folder, nodes[0], "step_*")
    kill_a_process(nodes[1])
    end(*nodes)
    restarted = curve(folder)
    end(start(folder, 2, **numbers))
    assert restarted == curve(folder)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two network namespaces, 10.77.0.1 and 10.77.0.2, that see each other and nothing else."""
    names = [f"crossearth-{os.getpid()}-{number}" for number in (1, 2)]
    link = ["link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[1]]
    try:
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        subprocess.run(["ip", *link], check=True)
        for number, name in enumerate(names, 1):
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0"], check=True)
            for device in ("lo", "eth0"):
                subprocess.run([*inside, "link", "set", device, "up"], check=True)
            elsewhere = subprocess.run([*inside, "route", "get", "192.0.2.1"], capture_output=True)
            assert elsewhere.returncode, "it shall see the other host alone"
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.skipif(shutil.which("ip") is None or os.geteuid() != 0, reason="needs root and iproute2")
def test_two_hosts_that_see_only_each_other_give_the_curve_of_one(
    folder: Path, hosts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options of docs/several-machines.md."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    meeting = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29400", "--rdzv-id=town"]
    nodes = []
    for number, name in enumerate(hosts, 1):
        own = [f"--local-addr=10.77.0.{number}", f"--rdzv-conf=is_host={'true' if number == 1 else 'false'}"]
        nodes.append(start(folder, 1, torchrun=[*meeting, *own], host=["ip", "netns", "exec", name]))
    end(*nodes)
    together = curve(folder)
    end(start(folder, 1))
    assert together == pytest.approx(curve(folder), rel=1e-4)


def test_processes_join_one_group_after_another(tmp_path: Path) -> None:
    """As `crossearth train` does for several recipes."""
    script = tmp_path / "groups.py"
    script.write_text(
        "from crossearth.components.runtime.processes import join_processes\n"
        "for _ in range(20):\n"
        "    with join_processes() as processes:\n"
        "        assert processes.sum([1.0]) == [2.0]\n"
    )
    command = ["torchrun", *ALONE, "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_processes_of_other_configurations_refuse_to_train(folder: Path) -> None:
    training = start(folder, 2, "train --seed $RANK")
    _, words = training.communicate(timeout=120)
    assert training.returncode != 0
    assert "the configuration differs between the processes" in words
    assert not any((folder / "artifacts/models").glob("*"))


def test_a_stopped_training_goes_on_with_another_number_of_processes(folder: Path) -> None:
    numbers = {"iterations": 60, "held_out_share": 0.3, "validate_every": 5, "checkpoint_every": 1000}
    training = start(folder, 2, **numbers)
    states = folder / f"artifacts/models/{RECIPE}.checkpoints"
    wait_for_state(folder, training, "best*")
    assert not any(states.glob("step_*")), "none but that which the signal asks for"
    training.send_signal(signal.SIGTERM)
    training.communicate(timeout=60)
    assert training.returncode != 0
    assert any(states.glob("step_*"))
    assert not (folder / f"artifacts/models/{RECIPE}").exists()

    words = end(start(folder, 1, **numbers))
    assert "processes 1 (before: 2)" in words
    gone_on = curve(folder)

    end(start(folder, 1, **numbers))
    assert gone_on == pytest.approx(curve(folder), rel=1e-2)
