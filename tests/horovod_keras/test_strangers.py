"""Strangers at the launcher's ports: they change nothing, crowd no pod out and hold none up."""

import http.client
import resource
import socket
import threading

import psutil
import pytest

from tests.horovod_keras.pods import FOREVER, SECRET, Pods, script, until

ENOUGH = 1100
"""Connections: more than the file descriptors that a process usually may have."""


def start(pods: Pods, command: list[str], *options: str) -> None:
    pods.start_all(command, *options)
    until("both ranks run", lambda: len(pods.ranks()) >= 2, 30)


class Dripping:
    """Connections that send a byte every now and then, and never a whole request."""

    def __init__(self, port: int, count: int) -> None:
        self._sockets = [socket.socket() for _ in range(count)]
        for each in self._sockets:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drip)

    def _drip(self) -> None:
        byte = b"G"
        while not self._over.wait(0.5):
            for each in self._sockets:
                try:
                    each.send(byte)
                except OSError:
                    continue

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *reason: object) -> None:
        self._over.set()
        self._thread.join()
        for each in self._sockets:
            each.close()


@pytest.mark.parametrize("service", [0, 1], ids=["control", "rendezvous"])
def test_connections_without_number_or_end_do_not_break_the_world(pods: Pods, service: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    start(pods, script("exec sleep 4"), "--max-restarts", "0")
    resource.prlimit(pods.processes[0].pid, resource.RLIMIT_NOFILE, (1024, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    try:
        with Dripping(pods.port + service, ENOUGH):
            assert pods.codes(15) == [0, 0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_that_never_ends_does_not_keep_a_launcher_from_ending(pods: Pods) -> None:
    start(pods, script("exec sleep 6"))
    with Dripping(pods.port, 3), Dripping(pods.port + 1, 3):
        assert pods.codes(30) == [0, 0]


def test_a_wrong_secret_is_refused_and_never_shown(pods: Pods) -> None:
    pods.start(0, script("env"), "--start-timeout", "4")
    pods.start(1, script("env"), "--start-timeout", "3", secret="another-secret-0123456789")
    assert pods.codes(12) == [1, 2]
    assert "refused a request from 127.0.0.1" in pods.log(0)
    assert "refuses this launcher" in pods.log(1)


def test_the_secret_is_in_no_command_line_log_or_rank(pods: Pods) -> None:
    pods.start_all(script("env; exec sleep 1000"))
    until("both ranks show their environment", lambda: all("RANK" in pods.log(pod) for pod in range(2)), 30)
    shown = [" ".join(process.cmdline()) for process in pods.running()]
    for process in pods.ranks():
        shown += process.environ().values()
    shown += [pods.log(0), pods.log(1)]
    assert "HOROVOD_RANK" in pods.log(0) and not any(SECRET in text for text in shown)


def test_what_is_not_signed_or_without_the_token_is_refused(pods: Pods) -> None:
    start(pods, FOREVER)

    def status(port: int, method: str, path: str, body: bytes = b"") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
        connection.request(method, path, body)
        return connection.getresponse().status

    assert status(pods.port, "POST", "/", b'{"pod": 1}') == 403
    assert status(pods.port, "POST", "/", b"") == 413
    for path in ("/global/0", "/0123456789abcdef/global/0", "//global/0"):
        assert status(pods.port + 1, "GET", path) == 403
        assert status(pods.port + 1, "PUT", path, b"evil") == 403
        assert status(pods.port + 1, "DELETE", path) == 403
    assert all(process.poll() is None for process in pods.processes.values())


def test_the_services_listen_on_their_own_interface_only(pods: Pods) -> None:
    start(pods, FOREVER)
    listening = psutil.Process(pods.processes[0].pid).net_connections("tcp")
    assert {c.laddr for c in listening if c.status == "LISTEN"} == {
        ("127.0.0.1", pods.port), ("127.0.0.1", pods.port + 1),
    }  # fmt: skip
