"""Ranks under the real horovodrun that take turns with other groups of ranks, and stand still in between."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
START = 180.0
"""Seconds in which all ranks of a group must be ready."""
TURN = 300.0
"""Seconds in which all ranks of a group must have answered."""

# A group that stands still looks stalled, and its next message late.
PATIENT = {"HOROVOD_STALL_CHECK_DISABLE": "1", "HOROVOD_GLOO_TIMEOUT_SECONDS": "3600"}


class Group:
    """Ready ranks; each connects to a socket of ours and does what it is told there (see scaling_rank.py).

    Args:
        ranks: how many; 0 is one process without a launcher.
        settings: more of the environment, for example Horovod's.

    Raises:
        RuntimeError: the ranks don't start.
    """

    def __init__(self, ranks: int, settings: Mapping[str, str] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="scaling-"))
        launcher = [_horovodrun(), "-np", str(ranks)] if ranks else []
        command = [*launcher, sys.executable, "-m", "benchmarks.scaling_rank", str(self._folder / "socket")]
        environment = os.environ | PATIENT | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
        self._connections, self._pids = [], list[int]()
        self._log = (self._folder / "log").open("w+")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._folder / "socket"))
            listener.listen()
            listener.settimeout(1.0)
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment | dict(settings or {}), stdout=self._log, stderr=subprocess.STDOUT
            )
            try:
                for _ in range(max(ranks, 1)):
                    self._connections.append(self._accept(listener).makefile("rw"))
                told = [json.loads(connection.readline()) for connection in self._connections]
            except BaseException:
                self.close()
                raise
        self._pids = [rank["pid"] for rank in told]
        self.facts: dict[str, Any] = {name: told[0][name] for name in ("threads", "versions", "gradients")}
        self._signal(signal.SIGSTOP)

    def turn(self, what: str, **request: int) -> dict[str, float]:
        """What all ranks measured at the same task: of each figure the largest."""
        self._signal(signal.SIGCONT)
        for connection in self._connections:
            connection.write(json.dumps({"what": what, **request}) + "\n")
            connection.flush()
        lines = [connection.readline() for connection in self._connections]
        if not all(lines):
            raise RuntimeError(f"a rank ended early. {self._end_of_log()}")
        self._signal(signal.SIGSTOP)
        answers = [json.loads(line) for line in lines]
        return {name: max(answer[name] for answer in answers) for name in answers[0]}

    def close(self) -> None:
        """End all ranks."""
        self._signal(signal.SIGCONT)
        for connection in self._connections:
            connection.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> socket.socket:
        for _ in range(int(START)):
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    break
            else:
                connection.settimeout(TURN)
                return connection
        raise RuntimeError(f"the ranks did not start. {self._end_of_log()}")

    def _end_of_log(self) -> str:
        self._log.seek(0)
        return "".join(self._log.readlines()[-10:])

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended; who reads from it is told
                os.kill(pid, number)


def _horovodrun() -> str:
    return shutil.which("horovodrun") or str(Path(sys.executable).with_name("horovodrun"))
