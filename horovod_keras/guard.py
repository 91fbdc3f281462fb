"""What every server of ours needs, since strangers may reach it: they can neither crowd a pod out nor hold it up."""

import contextlib
import socket
import socketserver
import sys
import threading
from typing import Any

MOST = 128
"""Connections that a server keeps open. Our own take milliseconds, so the oldest of more is a stranger's."""


class Guard(socketserver.ThreadingMixIn):
    """Put before a TCP server's class: threads that are `MOST` at a time and end with the process."""

    daemon_threads = True
    # Of connections that wait to be accepted: all ranks of a world come at the same moment.
    request_queue_size = 1024

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, None] = {}
        self._open_lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hang up on the oldest connection where there are too many, and serve this one."""
        with self._open_lock:
            self._open[request] = None
            if len(self._open) > MOST:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with contextlib.suppress(OSError):  # its client was faster
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection's end."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)  # type: ignore[misc]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet of clients that hang up in the middle: whoever of ours can't be heard is noticed as lost."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[misc]
