"""The launchers' messages: who is believed, who is not, and how long a look-up may take."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from horovod_keras import control
from horovod_keras.control import Beat, Channel, ControlServer, Order, RefusedError, UnreachableError, resolve

SECRET = b"0123456789abcdef0123456789abcdef"
BEAT = Beat(
    pod=1, pods=2, life="a", number=1, name="host-b", address="127.0.0.1", ranks=1, generation=0, restarts=0,
    running=False, exits=[(1, -9, False)], leaving=False, bye=False,
)  # fmt: skip


@pytest.fixture
def heard() -> list[Beat]:
    return []


@pytest.fixture
def server(heard: list[Beat]) -> Iterator[ControlServer]:
    def answer(beat: Beat) -> Order:
        heard.append(beat)
        return Order(kind="stop", generation=3, limit=2.5, reason="because")

    made = ControlServer(("127.0.0.1", 0), SECRET, answer, lambda address: None)
    yield made
    made.close()


def post(server: ControlServer, body: bytes, signature: str, length: str | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    headers = {"X-Signature": signature} | ({"Content-Length": length} if length else {})
    connection.request("POST", "/", body, headers)
    return connection.getresponse().status


def test_a_beat_arrives_and_its_order_comes_back(server: ControlServer, heard: list[Beat]) -> None:
    order = Channel("localhost", server.server_address[1], SECRET, 3).send(BEAT)
    assert order == Order(kind="stop", generation=3, limit=2.5, reason="because")
    assert [asdict(b) | {"exits": []} for b in heard] == [asdict(BEAT) | {"exits": []}]
    assert list(heard[0].exits[0]) == [1, -9, False]


def test_a_beat_that_is_replayed_is_refused(server: ControlServer, heard: list[Beat]) -> None:
    body = json.dumps(asdict(BEAT)).encode()
    assert [post(server, body, server.sign(body)) for _ in range(2)] == [200, 403]
    assert len(heard) == 1


def test_a_signature_of_an_earlier_coordinator_is_refused(server: ControlServer, heard: list[Beat]) -> None:
    earlier = ControlServer(("127.0.0.1", 0), SECRET, server.answer, lambda address: None)
    body = json.dumps(asdict(BEAT)).encode()
    signature = earlier.sign(body)
    earlier.close()
    assert post(server, body, signature) == 403 and not heard


def test_what_was_changed_on_the_way_is_refused(server: ControlServer, heard: list[Beat]) -> None:
    body = json.dumps(asdict(BEAT)).encode()
    assert post(server, body.replace(b"host-b", b"host-c"), server.sign(body)) == 403 and not heard


@pytest.mark.parametrize("length", ["-1", "99999999", "1e3", "9" * 5000])
def test_a_length_out_of_bounds_is_refused_before_anything_is_read(server: ControlServer, length: str) -> None:
    assert post(server, b"", "", length) == 413


def test_an_order_of_someone_without_the_secret_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = ControlServer(("127.0.0.1", 0), b"another secret", lambda b: Order(kind="exit"), lambda address: None)
    try:
        # It lets everyone in, and answers with its own signature.
        monkeypatch.setattr(
            stranger, "sign", lambda body: control._sign(SECRET, b"request", stranger.session.encode(), body)
        )
        with pytest.raises(RefusedError, match="doesn't know the secret"):
            Channel("127.0.0.1", stranger.server_address[1], SECRET, 3).send(BEAT)
    finally:
        stranger.close()


def test_an_answer_that_never_ends_is_not_waited_for() -> None:
    def drip(listener: socket.socket) -> None:
        connection = listener.accept()[0]
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                connection.sendall(b"x")
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        start = time.monotonic()
        with pytest.raises(UnreachableError, match="doesn't answer"):
            Channel("127.0.0.1", listener.getsockname()[1], SECRET, 0.5).send(BEAT)
        assert time.monotonic() - start < 5


def test_a_wrong_secret_is_told_apart_from_silence(server: ControlServer) -> None:
    with pytest.raises(RefusedError, match="refuses"):
        Channel("127.0.0.1", server.server_address[1], b"wrong", 3).send(BEAT)
    with pytest.raises(UnreachableError, match="doesn't answer"):
        Channel("127.0.0.1", 1, SECRET, 3).send(BEAT)


def test_a_look_up_is_bounded_and_says_what_it_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match=r"nowhere\.invalid"):
        resolve("nowhere.invalid", 10.0)
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answered.wait())  # a name service that is cut off
    with pytest.raises(UnreachableError, match=r"nowhere\.invalid can't be looked up within 0\.2 s"):
        resolve("nowhere.invalid", 0.2)
    answered.set()
