"""Start a command as the ranks of one world, over pods or plain hosts, without ssh and without an operator.

    python -m horovod_keras.launch --ranks-per-pod 4 -- python -m job.train …          # this machine alone

    export HOROVOD_LAUNCH_SECRET=…                                                     # the same on each host
    python -m horovod_keras.launch --pods 2 --pod-index 0 --coordinator host-a -- COMMAND…     # on host-a
    python -m horovod_keras.launch --pods 2 --pod-index 1 --coordinator host-a -- COMMAND…     # on host-b

The launcher of pod 0 runs Horovod's rendezvous and coordinates; hosts may come in any order. When a rank or a pod is
lost, all ranks end and the world forms again, up to --max-restarts: the command must be one that goes on from its last
checkpoint. Exit codes, of the command's ranks and of the launcher: 0 done, 1 failed, 2 wrong configuration (no retry),
75 pre-empted (the same command goes on later).

Each option can be given as a variable too: --start-timeout as HOROVOD_LAUNCH_START_TIMEOUT. The secret is never an
option: HOROVOD_LAUNCH_SECRET or --secret-file; one pod alone draws its own.
"""

import argparse
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from horovod_keras.coordinator import FAILED, MISUSED, Rules
from horovod_keras.launcher import BEAT, VARIABLE, Launcher, LaunchError, Settings, say
from horovod_keras.rendezvous import address_of
from horovod_keras.voice import settle

INDEX = "JOB_COMPLETION_INDEX"
"""In which Kubernetes tells each pod of an Indexed Job its number."""
PORT = 29710
"""The control channel's port; the rendezvous has the next one."""
SHORTEST_SECRET, LONGEST_SECRET = 16, 4096
"""Bytes."""
AFTER_POD_0 = 5.0
"""Seconds by which the other pods of a failed Kubernetes Job end later. The first failure may end the Job, which then
deletes the pods that still run, with their logs: that of pod 0 tells most."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchError(MISUSED, message)


def gpus() -> int:
    """The number of NVIDIA GPUs that this pod may use, found without a library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return sum(1 for device in Path("/dev").glob("nvidia[0-9]*"))


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings from the command line, the environment and the defaults, in this order. Raises LaunchError."""
    rules = Rules()
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = _Parser(
        prog="python -m horovod_keras.launch",
        usage="%(prog)s [options] -- COMMAND …",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def option(name: str, kind: type, default: object, text: str) -> None:
        variable = VARIABLE + name.upper().replace("-", "_")
        shown = "" if default is None else f" (default: {default})"
        value = environment.get(variable) or default
        parser.add_argument(f"--{name}", type=kind, default=value, metavar=kind.__name__.upper(), help=text + shown)

    option("pods", int, 1, "pods (hosts) in all")
    option("pod-index", int, None, "this pod's number, from 0 (default of several: JOB_COMPLETION_INDEX)")
    option("ranks-per-pod", int, gpus() or 1, "ranks that this pod brings: its GPUs, or 1")
    option("coordinator", str, None, "name or address of pod 0, for several pods")
    option("port", int, None, f"control channel; the next port is the rendezvous' ({PORT}; one pod: any free ones)")
    option("address", str, None, "this pod's own IPv4 address, if not the one on the way to pod 0")
    option("interface", str, None, "network interface of the ranks' traffic, and of --address if that isn't given")
    option("secret-file", str, None, "file with the secret that all launchers share")
    option("world-size", int, None, "number of ranks in all, if the command needs a certain one")
    option("start-timeout", float, rules.start_timeout, "seconds for all pods to be there")
    option("heartbeat-timeout", float, rules.heartbeat_timeout, "seconds of silence after which a pod is lost")
    option("grace", float, rules.grace, "seconds for the ranks to save and end after SIGTERM")
    option("finish-timeout", float, rules.finish_timeout, "seconds for the last rank to end after the first")
    option("max-restarts", int, rules.max_restarts, "times that the world forms again after a failure")
    rejoin = environment.get(VARIABLE + "REJOIN", str(INDEX in environment)).lower() in ("1", "true")
    text = "a pre-empted pod is replaced: wait for it (default: in a Kubernetes Job)"
    parser.add_argument("--rejoin", action=argparse.BooleanOptionalAction, default=rejoin, help=text)

    split = list(argv).index("--") if "--" in argv else len(argv)
    options, command = parser.parse_args(argv[:split]), list(argv[split + 1 :])
    return _checked(options, command, environment)


def _checked(options: argparse.Namespace, command: list[str], environment: Mapping[str, str]) -> Settings:
    def check(good: bool, what: str) -> None:
        if not good:
            raise LaunchError(MISUSED, what)

    several = options.pods > 1
    check(bool(command), "no command was given. Put it after --, as in: -- python train.py")
    check(options.pods >= 1, f"--pods must be at least 1: received {options.pods}.")
    check(options.ranks_per_pod >= 1, f"--ranks-per-pod must be at least 1: received {options.ranks_per_pod}.")
    if options.pod_index is None:
        # A single pod may be one of a Job whose pods train on their own.
        index = environment.get(INDEX, "") if several else "0"
        check(index.isdecimal(), "--pod-index is missing: with several pods each must know which it is.")
        options.pod_index = int(index)
    what = f"--pod-index must be from 0 to {options.pods - 1} for --pods {options.pods}: received {options.pod_index}."
    check(0 <= options.pod_index < options.pods, what)
    if options.interface:
        try:
            found = address_of(options.interface)
            options.address = options.address or found
        except LookupError as error:
            raise LaunchError(MISUSED, f"--interface: {error}") from None
    what = f"--address must be an IPv4 address, for Horovod knows no other: received {options.address}."
    check(options.address is None or re.fullmatch(r"[0-9.]+", options.address) is not None, what)
    knows = options.coordinator or (options.pod_index == 0 and options.address) or not several
    check(bool(knows), "--coordinator is missing: the name or address of pod 0.")
    if options.port is None:
        options.port = PORT if several else 0
    check(0 <= options.port < 65535, f"--port must be from 0 to 65534: received {options.port}.")
    check(options.port > 0 or not several, "--port must be a fixed one for several pods: received 0.")
    for name in ("start_timeout", "heartbeat_timeout", "grace", "finish_timeout"):
        value = getattr(options, name)
        check(value > 0, f"--{name.replace('_', '-')} must be more than 0 seconds: received {value:g}.")
    what = f"--heartbeat-timeout must be at least {3 * BEAT:g} seconds, which is three heart-beats: received"
    check(options.heartbeat_timeout >= 3 * BEAT, f"{what} {options.heartbeat_timeout:g}.")
    check(options.max_restarts >= 0, f"--max-restarts must not be negative: received {options.max_restarts}.")
    return Settings(
        command=command,
        pods=options.pods,
        pod_index=options.pod_index,
        ranks_per_pod=options.ranks_per_pod,
        coordinator=options.coordinator,
        port=options.port,
        address=options.address,
        interface=options.interface,
        secret=_secret(options.secret_file, environment, several=several),
        rules=Rules(
            start_timeout=options.start_timeout,
            heartbeat_timeout=options.heartbeat_timeout,
            grace=options.grace,
            finish_timeout=options.finish_timeout,
            max_restarts=options.max_restarts,
            rejoin=options.rejoin,
            world_size=options.world_size,
        ),
    )


def _secret(file: str | None, environment: Mapping[str, str], *, several: bool) -> bytes:
    """The shared secret: from a file, from HOROVOD_LAUNCH_SECRET, or from the Kubernetes Job's unguessable id."""
    if not several:
        return secrets.token_bytes(32)
    source = "HOROVOD_LAUNCH_SECRET"
    secret = (environment.get(source) or environment.get(VARIABLE + "JOB_UID", "")).encode()
    if file is not None:
        source = file
        try:
            with Path(file).open("rb") as opened:
                secret = opened.read(LONGEST_SECRET).strip()
        except OSError as error:
            raise LaunchError(MISUSED, f"--secret-file {file} can't be read: {error.strerror}.") from None
    if len(secret) < SHORTEST_SECRET:
        had = f"{len(secret)} bytes" if secret else "none"
        reason = f"the launchers of several pods need one secret of at least {SHORTEST_SECRET} bytes"
        raise LaunchError(MISUSED, f"{reason}: received {had} from {source}. Make one with: openssl rand -hex 32")
    return secret


def main(argv: Sequence[str]) -> int:
    """Run the launcher and return its exit code."""
    try:
        code = Launcher(parse(argv, os.environ)).run()
    except LaunchError as error:
        say(f"error: {error}")
        code = error.code
    if code in (FAILED, MISUSED) and os.environ.get(INDEX, "0") != "0":
        time.sleep(AFTER_POD_0)
    return code


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    # Python gives signals their default back before the process has ended: the exit code is decided.
    for last in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(last, signal.SIG_IGN)
    settle()
    sys.exit(ended)
