"""The rendezvous alone: ranks meet at it, strangers don't, and it gives its port back."""

import http.client
import os
import socket
import subprocess
import sys

import pytest

from horovod_keras.rendezvous import (
    Rendezvous,
    address_of,
    address_towards,
    interface_of,
    interface_variables,
)

SUM = """
import horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
print(hvd.rank(), hvd.local_size(), float(hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum)))
"""


def status(rendezvous: Rendezvous, path: str) -> int:
    connection = http.client.HTTPConnection(rendezvous.address, rendezvous.port, timeout=3)
    connection.request("GET", path)
    return connection.getresponse().status


def test_ranks_of_two_hosts_meet_and_add_up() -> None:
    with Rendezvous("127.0.0.1") as rendezvous:
        environments = rendezvous.form([("host-a", 1), ("host-b", 1)])
        shared = os.environ | interface_variables("lo") | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        ranks = [
            subprocess.Popen([sys.executable, "-c", SUM], env=shared | e, stdout=subprocess.PIPE, text=True)
            for e in environments
        ]
        outputs = [rank.communicate(timeout=90)[0].strip() for rank in ranks]
    assert outputs == ["0 1 3.0", "1 1 3.0"]


def test_who_lacks_the_token_of_this_world_is_refused() -> None:
    with Rendezvous("127.0.0.1") as rendezvous:
        old = rendezvous.form([("a", 1)])[0]["HOROVOD_GLOO_RENDEZVOUS_ADDR"].partition("/")[2]
        assert status(rendezvous, f"/{old}:{rendezvous.port}/global/0") == 404  # let in, but nothing is there yet
        new = rendezvous.form([("a", 1)])[0]["HOROVOD_GLOO_RENDEZVOUS_ADDR"].partition("/")[2]
        assert [status(rendezvous, f"/{token}:1/global/0") for token in (new, old, "", "x")] == [404, 403, 403, 403]


def test_hosts_of_one_name_are_told_apart_and_odd_names_are_made_fit_for_a_url() -> None:
    with Rendezvous("127.0.0.1") as rendezvous:
        names = [e["HOROVOD_HOSTNAME"] for e in rendezvous.form([("a", 1), ("a", 2), ("b c/d", 1)])]
    assert names == ["a", "a-1", "a-1", "b-c-d"]


def test_closing_gives_the_port_back() -> None:
    with Rendezvous("127.0.0.1") as rendezvous:
        port = rendezvous.port
        with pytest.raises(OSError, match="in use"):
            Rendezvous("127.0.0.1", port)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_interfaces_and_addresses_lead_to_each_other() -> None:
    assert interface_of("127.0.0.1") == "lo" and address_of("lo") == "127.0.0.1"
    assert address_towards("127.0.0.1") == "127.0.0.1"
    with pytest.raises(LookupError, match=r"192\.0\.2\.1"):
        interface_of("192.0.2.1")
    with pytest.raises(LookupError, match="none0"):
        address_of("none0")
