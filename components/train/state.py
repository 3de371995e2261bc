"""States of an unfinished training: written atomically, k kept, resumed by the same training only."""

import json
import logging
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from crossearth.data.common.errors import InputError
from crossearth.data.common.files import atomic_path
from crossearth.model.weights.checkpoint import state_digest

STATE_NAME = re.compile(r"step_(\d{8})\.safetensors")
BEST_NAME = "best.safetensors"
FAILURES_ALLOWED = 2  # writes in a row that may fail before the training stops

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What was saved: named tensors, and `about` (JSON values) with at least `iteration` and `identity`.

    `about["tensors"]` is the digest of the tensors.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]


class Checkpoints:
    """The folder of one training's states: `step_<iteration>.safetensors` and `best.safetensors`.

    Args:
        folder: made on the first write.
        keep: number of last states that are kept.
        identity: the inputs that determine the training's curve, JSON values by name.
    """

    def __init__(self, folder: Path, keep: int, identity: Mapping[str, Any]) -> None:
        self.folder, self.keep = Path(folder), keep
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._unreadable: set[Path] = set()
        self._failures: Counter[str] = Counter()

    def save(self, iteration: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bool:
        """Writes the state after `iteration` iterations and removes states older than the last `keep`.

        Returns:
            Whether it was written; where not (no space), a warning was logged and the older states stand.

        Raises:
            InputError: more than `FAILURES_ALLOWED` writes in a row failed.
        """
        if not self._write(f"step_{iteration:08d}.safetensors", tensors, {**about, "iteration": iteration}):
            return False
        # an unreadable state must not push out a readable one
        for path in [path for path in self._states() if path not in self._unreadable][: -self.keep]:
            path.unlink()
        return True

    def save_best(self, iteration: int, tensors: Mapping[str, Tensor], score: float) -> bool:
        """Writes the parameters with the best score on the source's held-out tiles so far."""
        return self._write(BEST_NAME, tensors, {"iteration": iteration, "score": score})

    def latest(self) -> State | None:
        """The newest readable state; damaged ones are skipped with a warning.

        Raises:
            InputError: the states belong to a training with other inputs; the message names them.
        """
        for path in reversed(self._states()):
            state = self._read(path)
            if state is not None:
                self._refuse_other(state.about)
                return state
            self._unreadable.add(path)
        return None

    def best(self) -> State | None:
        """The best parameters so far, if any were written, are readable and of this training."""
        path = self.folder / BEST_NAME
        state = self._read(path) if path.is_file() else None
        return state if state is not None and state.about["identity"] == self.identity else None

    def clear(self) -> None:
        """Removes the folder's states: the training is finished, its model is elsewhere."""
        for path in [*self._states(), self.folder / BEST_NAME]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _states(self) -> list[Path]:
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in paths if STATE_NAME.fullmatch(path.name))

    def _write(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bool:
        kind = BEST_NAME if name == BEST_NAME else "state"  # one may still fit where the other does not
        host = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        said = {**about, "identity": self.identity, "tensors": state_digest(host)}
        content = save(host, metadata={"about": json.dumps(said)})
        try:
            with atomic_path(self.folder / name) as partial:
                partial.write_bytes(content)
        except OSError as error:
            self._failures[kind] += 1
            if self._failures[kind] > FAILURES_ALLOWED:
                raise InputError(
                    f"cannot write checkpoints ({error}), {self._failures[kind]} times in a row",
                    where=self.folder,
                    next_step="free some space and start the training again: it goes on from the last state",
                ) from error
            log.warning(
                "%s: checkpoint not written (%s); the previous one is kept", self.folder / name, error
            )
            return False
        self._failures[kind] = 0
        self._unreadable.discard(self.folder / name)
        return True

    def _read(self, path: Path) -> State | None:
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
            if about["tensors"] != state_digest(tensors):
                raise ValueError("its parameters were changed since it was written")
            return State(tensors, {"identity": {}, **about})
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            log.warning("%s: not a readable checkpoint, skipped (%s)", path, error)
            return None

    def _refuse_other(self, about: Mapping[str, Any]) -> None:
        saved: Mapping[str, Any] = about["identity"]
        differing = []
        for key in sorted({*saved, *self.identity}):
            there, now = (
                repr(values[key]) if key in values else "nothing" for values in (saved, self.identity)
            )
            if there != now:
                differing.append(f"{key}: {there} there, {now} now")
        if differing:
            code = ""
            if saved.get("code") != self.identity.get("code") and about.get("git_revision"):
                code = f" (its code: git {about['git_revision']})"
            folder = shlex.quote(str(self.folder))
            raise InputError(
                f"an unfinished training ({about['iteration']} iterations) with other inputs is here; "
                f"they differ in {'; '.join(differing)}",
                where=self.folder,
                next_step=f"to go on with it, restore these inputs{code}; "
                f"to start anew: mv {folder} {folder}.old",
            )
