"""How the launchers of a world talk: signed heart-beats over HTTP, each answered by an order.

Every pod tells the coordinator (the launcher of pod 0) how it is, twice a second, and gets an order back. There is no
lasting connection that could break or hang: a pod that stops beating is lost, and so is a coordinator that stops
answering.

A request is signed (HMAC-SHA256 with the launchers' shared secret) over the coordinator's session, which is drawn anew
by each coordinator, and carries a number that only rises: one that is replayed is refused. The reply is signed over
the request, so that a pod knows that it speaks to the coordinator and to no other.
"""

import hmac
import http.client
import json
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Literal, TypeVar

from horovod_keras.background import within
from horovod_keras.guard import Guard

_MOST_BYTES = 1 << 20
_SIGNATURE = "X-Signature"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a pod tells the coordinator about itself."""

    pod: int
    pods: int
    """How many pods it believes there are."""
    life: str
    """Which start of this pod's launcher: another one means that the pod was replaced."""
    number: int
    """Rises with each beat of one life."""
    name: str
    address: str
    ranks: int
    generation: int
    """The last world that it ran ranks of; 0: none yet."""
    restarts: int
    running: bool
    exits: list[tuple[int, int, bool]]
    """(rank, code, asked) of its ranks that have ended in that world: see `horovod_keras.ranks.RankExit`."""
    leaving: bool
    """It has been told to end by someone outside (SIGTERM)."""
    bye: bool
    """It sends no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the coordinator answers."""

    kind: Literal["wait", "run", "stop", "exit"]
    generation: int = 0
    restarts: int = 0
    environments: list[dict[str, str]] | None = None
    """For "run": the rendezvous and rank variables of this pod's ranks."""
    limit: float = 0.0
    """For "stop": seconds that the ranks get to end by themselves."""
    code: int = 0
    """For "exit": the exit code. For "stop": the code of what is the cause."""
    reason: str = ""


class UnreachableError(Exception):
    """No coordinator has answered; the message says why, in a few words."""


class RefusedError(UnreachableError):
    """Something answers there, but doesn't accept this launcher's secret."""


def _sign(secret: bytes, *parts: bytes) -> str:
    return hmac.new(secret, b"\n".join(parts), sha256).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: "ControlServer"
    timeout = 3

    def do_GET(self) -> None:
        self._answer(200, self.server.session.encode())

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isdecimal() and len(length) < 8 and 0 < int(length) <= _MOST_BYTES):
            self._answer(413, b"")
            return
        body = self.rfile.read(int(length))
        signature = self.headers.get(_SIGNATURE, "")
        if not hmac.compare_digest(signature.encode(), self.server.sign(body).encode()):
            self.server.refused(self.client_address[0])
            self._answer(403, b"")
            return
        beat = Beat(**json.loads(body))
        if not self.server.is_new(beat):
            self._answer(403, b"")
            return
        reply = json.dumps(asdict(self.server.answer(beat))).encode()
        self._answer(200, reply, _sign(self.server.secret, b"reply", signature.encode(), reply))

    def _answer(self, status: int, body: bytes, signature: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(_SIGNATURE, signature)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what matters is said by the coordinator."""


class ControlServer(Guard, HTTPServer):
    """The coordinator's ear: checks each beat's signature and hands it to ``answer``, in a thread of its own.

    Args:
        address: the address and port to listen on (port 0: any).
        secret: what all launchers of this world share.
        answer: what turns a beat into an order.
        refused: is told the address of each request with a wrong signature.

    Raises:
        OSError: the address or port can't be had.
    """

    def __init__(
        self,
        address: tuple[str, int],
        secret: bytes,
        answer: Callable[[Beat], Order],
        refused: Callable[[str], None],
    ) -> None:
        super().__init__(address, _Handler)
        self.secret = secret
        self.answer = answer
        self.refused = refused
        self.session = secrets.token_hex(16)
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def sign(self, body: bytes) -> str:
        """The signature that a request of this session with this body must carry."""
        return _sign(self.secret, b"request", self.session.encode(), body)

    def is_new(self, beat: Beat) -> bool:
        """Whether this beat is no replay of an earlier one."""
        with self._lock:
            new = beat.number > self._numbers.get(beat.life, 0)
            if new:
                self._numbers[beat.life] = beat.number
            return new

    def close(self) -> None:
        """Stop listening and give the port back."""
        self.shutdown()
        self.server_close()


class Channel:
    """A pod's way to the coordinator.

    Args:
        host: its name or IPv4 address; a name is looked up again whenever the coordinator has not answered.
        port: its port.
        secret: what all launchers of this world share.
        timeout: seconds for looking up the name, and for each request.
    """

    def __init__(self, host: str, port: int, secret: bytes, timeout: float) -> None:
        self._host = host
        self._port = port
        self._secret = secret
        self._timeout = timeout
        self._address: str | None = None
        self._session: str | None = None

    def find(self) -> str:
        """The coordinator's IPv4 address. Raises UnreachableError where the name can't be looked up (yet)."""
        if self._address is None:
            self._address = resolve(self._host, self._timeout)
        return self._address

    def send(self, beat: Beat) -> Order:
        """Deliver one beat and return the order. Raises UnreachableError."""
        try:
            if self._session is None:
                self._session = self._request("GET", b"", "")[0].decode()
            body = json.dumps(asdict(beat)).encode()
            signature = _sign(self._secret, b"request", self._session.encode(), body)
            reply, theirs = self._request("POST", body, signature)
            if not hmac.compare_digest(theirs, _sign(self._secret, b"reply", signature.encode(), reply)):
                raise RefusedError("what answers there doesn't know the secret")
            return Order(**json.loads(reply))
        except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
            self._forget()
            raise UnreachableError(f"{self._address or self._host} doesn't answer ({error})") from error
        except UnreachableError:
            self._forget()
            raise

    def _forget(self) -> None:
        self._address = self._session = None

    def _request(self, method: str, body: bytes, signature: str) -> tuple[bytes, str]:
        address = self.find()

        def exchange() -> tuple[http.client.HTTPResponse, bytes]:
            connection = http.client.HTTPConnection(address, self._port, timeout=self._timeout)
            try:
                connection.request(method, "/", body, {_SIGNATURE: signature})
                reply = connection.getresponse()
                return reply, reply.read(_MOST_BYTES)
            finally:
                connection.close()

        # A socket's own limit begins anew with each byte: a stranger could make the reply last for days.
        reply, content = within(self._timeout, "reply", exchange)
        if reply.status == 403:
            raise RefusedError("it refuses this launcher's secret")
        if reply.status != 200:
            raise UnreachableError(f"it answers with HTTP status {reply.status}")
        return content, reply.headers.get(_SIGNATURE, "")


def resolve(host: str, limit: float) -> str:
    """The IPv4 address of ``host``, looked up within ``limit`` seconds. Raises UnreachableError."""
    try:
        # A look-up can't be interrupted, and where the network is cut may take far longer than anyone wants to wait.
        found = within(limit, "resolve", lambda: socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM))
    except TimeoutError:
        raise UnreachableError(f"the name {host} can't be looked up within {limit:g} s") from None
    except OSError as error:
        raise UnreachableError(f"the name {host} doesn't resolve ({error.strerror or error})") from None
    return str(found[0][4][0])
