"""How far a training is, in the status of the TrainJob whose pod this is (Kubeflow Trainer 2.2 and later).

Trainer names an address to its pods where its feature `TrainJobStatus` is on; Kubeflow's SDK knows what is
sent there. It waits for the answer, so a thread does it: a server that is away costs some seconds at the end.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from types import TracebackType

ADDRESS = "KUBEFLOW_TRAINER_SERVER_URL"
EVERY_S = 6.0  # the SDK sends nothing within 5 s of what it has sent
LONGEST_PAUSE_S = 300.0  # to a server that does not answer
LAST_TRIES = 3

log = logging.getLogger(__name__)


class JobStatus:
    """A block in which a training says how far it is; where no TrainJob asks, nothing is sent.

    What was said last is sent before the block ends well: a tuning reads its score there.
    """

    def __init__(self, wanted: bool = True) -> None:
        """`wanted`: whether this process is the one that speaks for the job."""
        self._said: tuple[int, int | None, dict[str, float | int | str]] | None = None
        self._ended = threading.Event()
        self._well = False
        self._thread: threading.Thread | None = None
        if wanted and ADDRESS in os.environ:
            self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "JobStatus":
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._well = kind is None
        self._ended.set()
        if self._thread and self._well:
            self._thread.join()

    def say(self, percent: int, seconds_left: float | None, metrics: Mapping[str, float]) -> None:
        """Says how far the training is.

        Args:
            percent: of it that is done, 0..100.
            seconds_left: as far as that can be told.
            metrics: latest values, by name; those of before stay.
        """
        before = self._said[2] if self._said else {}
        self._said = percent, None if seconds_left is None else round(seconds_left), {**before, **metrics}

    def _work(self) -> None:
        try:
            from kubeflow.trainer import update_trainjob_status
        except ModuleNotFoundError:
            log.warning("kubeflow is not installed: the TrainJob's status stays empty")
            return

        def send() -> bool:
            return self._said is None or update_trainjob_status(*self._said)

        pause = EVERY_S
        while not self._ended.wait(pause):
            pause = EVERY_S if send() else min(2 * pause, LONGEST_PAUSE_S)
        for number in range(LAST_TRIES * self._well):
            time.sleep(EVERY_S if number else 0)
            if send():
                return
