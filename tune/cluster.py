"""The Ray cluster that a search runs on, and whether a trial fits it."""

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence

import ray

from job.config import Config
from job.errors import InputError
from tune.settings import Search
from tune.trial import GIB, TRIAL_MEMORY, Task

# Peak memory of a rank on a CPU, measured at 32 to 224 px with 20 and 40 images (`ru_maxrss`, TensorFlow 2.21):
# libraries, data, weights and their checkpoint; then what each image's activations and gradients need for each pixel.
_BASE = 1.2 * GIB
_PER_PIXEL = 600
_ADVICE = "Lower --ranks-per-trial, --cpus-per-rank, --memory-per-rank or the largest resolution."


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, on a cluster of this machine's own that ends with the block, or on one that is there already.

    Raises:
        InputError: no cluster answers at the address.
    """
    # A cluster of our own needs no token in the user's home: this one ends with it.
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif address != "auto":
        _reach(address)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"no Ray cluster answers: received --address {address} ({reason:.200}).") from None
    try:
        yield
    finally:
        ray.shutdown()


def task(search: Search) -> Task:
    """What a trial needs and does on the cluster that is connected."""
    settings, largest = search.settings, search.space.largest()
    gpus = settings.gpus_per_rank
    if gpus is None:
        gpus = int(any(node.get("GPU") for node in nodes()))
    memory = settings.memory_per_rank * GIB if settings.memory_per_rank else needed(largest, settings.ranks_per_trial)
    return Task(
        fixed=search.space.fixed,
        ranks=settings.ranks_per_trial,
        cpus=settings.cpus_per_rank,
        gpus=gpus,
        memory=int(memory),
        placement=settings.placement,
        folder=str(settings.out.absolute() / "runs"),
        seconds=settings.seconds if settings.budget == "seconds" else None,
    )


def needed(config: Config, ranks: int) -> float:
    """Bytes of memory that a rank of a run needs, roughly."""
    images = config.global_batch / ranks / config.accumulate
    return _BASE + images * max(config.resolutions()) ** 2 * _PER_PIXEL


def slots(search: Search, work: Task) -> int:
    """How many trials run at a time, at most as many as there are.

    Raises:
        InputError: none fits; gives the numbers.
    """
    free = [dict(node) for node in nodes()]
    count = 0
    while count < search.settings.trials and _place(work.resources().bundles, free):
        count += 1
    if not count:
        largest = search.space.largest()
        have = "; ".join(
            f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU, {n.get('memory', 0) / GIB:.1f} GiB" for n in nodes()
        )
        raise InputError(
            f"a trial doesn't fit the cluster: it needs {work.ranks} rank(s) of {work.cpus} CPU, {work.gpus} GPU and "
            f"{work.memory / GIB:.1f} GiB of memory (at {max(largest.resolutions())} px with a global batch of "
            f"{largest.global_batch}) and {TRIAL_MEMORY / GIB:.2g} GiB for itself; there are {len(nodes())} node(s): "
            f"{have}. {_ADVICE}"
        )
    return count


def nodes() -> list[Mapping[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _place(bundles: Sequence[Mapping[str, float]], free: list[dict[str, float]]) -> bool:
    """Take each bundle's resources from the first node that has them; False if one finds no place."""
    for bundle in bundles:
        node = next((n for n in free if all(n.get(name, 0) >= amount for name, amount in bundle.items())), None)
        if node is None:
            return False
        for name, amount in bundle.items():
            node[name] -= amount
    return True


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"the cluster's address must be auto or HOST:PORT: received --address {address}.")
    # Ray itself would go on trying for a minute and more.
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers: received --address {address} ({error}).") from None
