"""Where the ranks of a world find each other: Horovod's rendezvous behind an unguessable address.

    with Rendezvous("10.0.0.1") as rendezvous:
        environments = rendezvous.form([("host-a", 2), ("host-b", 2)])
        # start four processes, each with os.environ | environments[rank] | interface_variables("eth0")

Horovod's rendezvous is a store of keys and values over HTTP that believes everyone, and its C++ client
(horovod/common/gloo/http_store.cc) can send no credential of its own. But the client pastes the address that it is
given into the URL as it is, so an address such as ``10.0.0.1:29711/TOKEN`` makes each of its requests begin with the
token; what comes without it is refused. The token is new for each world, so that a rank left over from the world
before can't disturb this one.
"""

import contextlib
import hmac
import re
import secrets
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import psutil
from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
from horovod.runner.gloo_run import create_slot_env_vars
from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

from horovod_keras.guard import Guard


class _Server(Guard, RendezvousHTTPServer):
    token = secrets.token_hex(16)


class _Handler(RendezvousHandler):
    server: _Server
    path: str

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        # "/TOKEN:PORT/scope/key": the port is what the client appends to the address that it was given.
        first, _, rest = self.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(first.partition(":")[0].encode(), self.server.token.encode()):
            self.send_error(403)
            return False
        self.path = "/" + rest
        return True


class Rendezvous:
    """A rendezvous server for one world after another.

    Args:
        address: the IPv4 address to listen on; the ranks connect to it (Horovod's client knows no IPv6).
        port: the TCP port; 0 takes a free one.

    Raises:
        OSError: the address or the port can't be had.
    """

    def __init__(self, address: str, port: int = 0) -> None:
        self._server = _Server((address, port), _Handler, 0)
        self.address: str = address
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def form(self, hosts: Sequence[tuple[str, int]]) -> list[dict[str, str]]:
        """Forget the world before, and return the environment of each rank of a new one, in the order of ranks.

        Args:
            hosts: name and number of ranks of each host, in the order that their ranks shall have. Hosts of the same
                name get different ones: Horovod takes ranks of one name for neighbours on one machine.
        """
        seen: set[str] = set()
        slots = []
        for index, (name, ranks) in enumerate(hosts):
            clean = re.sub(r"[^A-Za-z0-9.-]", "-", name)
            clean = f"{clean}-{index}" if clean in seen else clean
            seen.add(clean)
            slots.append(HostInfo(clean, ranks))
        plan = get_host_assignments(slots, sum(ranks for _, ranks in hosts))
        self._server.token = secrets.token_hex(16)
        self._server.init(plan)
        world = {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": f"{self.address}:{self.port}/{self._server.token}",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(self.port),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }
        return [world | create_slot_env_vars(slot) for slot in plan]

    def close(self) -> None:
        """Stop serving and give the port back (Horovod's own ``stop()`` leaves the socket open)."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def interface_variables(name: str) -> dict[str, str]:
    """The variables that keep a rank's Gloo and NCCL traffic on the network interface ``name``."""
    return {"HOROVOD_GLOO_IFACE": name, "NCCL_SOCKET_IFNAME": name}


def interface_of(address: str) -> str:
    """The name of this machine's network interface that has the IPv4 ``address``; LookupError if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == address for a in addresses):
            return name
    raise LookupError(f"no network interface of this machine has the address {address}.")


def address_of(interface: str) -> str:
    """The first IPv4 address of a network interface; LookupError if there is none."""
    for a in psutil.net_if_addrs().get(interface, []):
        if a.family == socket.AF_INET:
            return a.address
    raise LookupError(
        f"network interface {interface!r} has no IPv4 address. Present: {', '.join(psutil.net_if_addrs())}."
    )


def address_towards(host: str) -> str:
    """This machine's IPv4 address on the way to ``host`` (an IPv4 address); OSError where no way leads there."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.connect((host, 9))  # no packet is sent: the kernel only looks up the route
        return probe.getsockname()[0]
