"""Launchers as real processes: pods over the loopback interface, or each in a network namespace of its own."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ROOT = Path(__file__).parents[2]
SECRET = "a-secret-for-tests-0123456789abcdef"
FOREVER = ["sleep", "1000"]


def script(text: str) -> list[str]:
    """A command for ranks: these lines of shell."""
    return ["sh", "-c", text]


def free_port() -> int:
    """A port that is free together with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def until(what: str, condition: Callable[[], object], limit: float) -> float:
    """Wait for a condition and return the seconds that it took; AssertionError after ``limit`` seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit, f"not within {limit:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - start


def processes_in(folder: Path) -> list[psutil.Process]:
    """All processes, anyone's children, whose working directory this is and that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


class Network:
    """Hosts with addresses of their own: network namespaces on one bridge. Needs root and iproute2."""

    _count = itertools.count()

    def __init__(self, hosts: int) -> None:
        # Kernel names of interfaces have at most 15 characters, and may linger for a moment after their deletion.
        self._tag = f"hk{os.getpid() % 100000}{chr(ord('a') + next(self._count) % 26)}"
        self.hosts = hosts

    @staticmethod
    def why_not() -> str | None:
        """Why namespaces can't be made here, or None."""
        if shutil.which("ip") is None:
            return "no `ip` command: install iproute2"
        probe = f"hkprobe{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
        subprocess.run(["ip", "netns", "delete", probe], capture_output=True)
        return f"network namespaces can't be made: {made.stderr.strip()}" if made.returncode else None

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _make(self) -> None:
        self._ip("link", "add", self._tag, "type", "bridge")
        self._ip("link", "set", self._tag, "up")
        for host in range(self.hosts):
            name, outside = self.namespace(host), f"{self._tag}v{host}"
            self._ip("netns", "add", name)
            # A namespace's own hosts file, mounted over /etc/hosts by `ip netns exec`.
            self.names(host, {})
            self._ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            self._ip("link", "set", outside, "master", self._tag, "up")
            self._ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                self._ip("-n", name, "link", "set", device, "up")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for host in range(self.hosts):
            subprocess.run(["ip", "netns", "delete", self.namespace(host)], check=False)
            shutil.rmtree(Path("/etc/netns") / self.namespace(host), ignore_errors=True)
        subprocess.run(["ip", "link", "delete", self._tag], check=False)

    def namespace(self, host: int) -> str:
        return f"{self._tag}n{host}"

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def names(self, host: int, names: dict[str, str]) -> None:
        """What this host can look up beside its own name: name → address."""
        file = Path("/etc/netns") / self.namespace(host) / "hosts"
        file.parent.mkdir(parents=True, exist_ok=True)
        names = {"localhost": "127.0.0.1", socket.gethostname(): self.address(host)} | names
        file.write_text("".join(f"{address} {name}\n" for name, address in names.items()))

    def cut(self, host: int) -> None:
        """Pull this host's plug: no error is seen at either end."""
        self._ip("link", "set", f"{self._tag}v{host}", "down")

    def mend(self, host: int) -> None:
        self._ip("link", "set", f"{self._tag}v{host}", "up")

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)


class Pods:
    """The launchers of one world. Leaving the context kills what is left of them.

    Args:
        folder: for logs, and the ranks' working directory.
        count: how many pods there are.
        network: where they live; None: all on 127.0.0.1.
        options: for each launcher, after quick time limits.
    """

    def __init__(
        self, folder: Path, count: int = 2, network: Network | None = None, options: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.count = count
        self.network = network
        self.port = free_port()
        limits = ["--start-timeout", "8", "--heartbeat-timeout", "1.5", "--grace", "3"]
        self._options = [*limits, *options]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._all:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    def start(self, pod: int, command: Sequence[str], *options: str, secret: str | None = SECRET) -> None:
        """Start this pod's launcher, for the first time or again."""
        prefix = ["ip", "netns", "exec", self.network.namespace(pod)] if self.network else []
        host = self.network.address(0) if self.network else "127.0.0.1"
        where = ["--coordinator", host, "--port", str(self.port)] if self.count > 1 else []
        launcher = [sys.executable, "-m", "horovod_keras.launch", "--pods", str(self.count), "--pod-index", str(pod)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HOROVOD_")}
        environment |= {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if secret is not None:
            environment["HOROVOD_LAUNCH_SECRET"] = secret
        with self.file(pod).open("ab") as log:
            self.processes[pod] = subprocess.Popen(
                [*prefix, *launcher, *where, *self._options, *options, "--", *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
            )
        self._all.append(self.processes[pod])

    def start_all(self, command: Sequence[str], *options: str) -> None:
        for pod in range(self.count):
            self.start(pod, command, *options)

    def file(self, pod: int) -> Path:
        return self.folder / f"pod-{pod}.log"

    def log(self, pod: int) -> str:
        """What this pod has printed so far, over all its starts."""
        return self.file(pod).read_text() if self.file(pod).exists() else ""

    def code(self, pod: int, limit: float) -> int:
        """The launcher's exit code; AssertionError with all logs if it still runs after ``limit`` seconds."""
        try:
            return self.processes[pod].wait(limit)
        except subprocess.TimeoutExpired:
            logs = "".join(f"\n-- pod {p}\n{self.log(p)}" for p in range(self.count))
            raise AssertionError(f"pod {pod} has not ended within {limit:g} s{logs}") from None

    def codes(self, limit: float) -> list[int]:
        """The exit codes of all, in the order of pods."""
        return [self.code(pod, limit) for pod in sorted(self.processes)]

    def running(self) -> list[psutil.Process]:
        """All processes, anyone's children, that work in this world's folder."""
        return processes_in(self.folder)

    def ranks(self) -> list[psutil.Process]:
        """The running processes that are ranks (or of ranks) and no launchers."""
        launchers = {process.pid for process in self._all}
        return [process for process in self.running() if process.pid not in launchers]
