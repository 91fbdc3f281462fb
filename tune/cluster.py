"""The Ray cluster that a search runs on, and whether a trial fits it."""

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from horovod_keras.voice import tell
from job.config import Config
from job.errors import InputError, RunError
from tune.folder import SCRATCH
from tune.settings import Search
from tune.trial import GIB, TRIAL_MEMORY, Task

# Peak memory of a rank on a CPU, measured at 32 to 224 px with 20 and 40 images (`ru_maxrss`, TensorFlow 2.21):
# libraries, data, weights and their checkpoint; then what each image's activations and gradients need for each pixel.
_BASE = 1.2 * GIB
_PER_PIXEL = 600
_ADVICE = "Lower --ranks-per-trial, --cpus-per-rank, --memory-per-rank or the largest resolution."
# Seconds for which others may hold what a trial needs: until that is said, and until the search gives up.
_PATIENCE = 10
_MOST_PATIENCE = 1800


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, on a cluster of this machine's own that ends with the block, or on one that is there already.

    Raises:
        InputError: no cluster answers at the address.
        RunError: none can be started here.
        KeyboardInterrupt: SIGTERM came meanwhile.
    """
    # A cluster of our own needs no token in the user's home: this one ends with it.
    address = None if address == "local" else address
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
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:  # other versions, no token
        reason = " ".join(str(error).split())
        if address is None:
            raise RunError(f"Ray can't start on this machine: {reason:.200}. The same command goes on.") from None
        raise InputError(f"no Ray cluster answers: received --address {address} ({reason:.200}).") from None
    except SystemExit:  # Ray's answer to SIGTERM
        raise KeyboardInterrupt from None
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
        folder=str(settings.out.absolute() / SCRATCH),
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
    while count < search.count() and _place(work.resources().bundles, free):
        count += 1
    if not count:
        largest = search.space.largest()
        raise InputError(
            f"a trial doesn't fit the cluster: it needs {_needs(work)} (at {max(largest.resolutions())} px with a "
            f"global batch of {largest.global_batch}) and {TRIAL_MEMORY / GIB:.2g} GiB for itself; there are "
            f"{len(nodes())} node(s): {'; '.join(map(_amounts, nodes()))}. {_ADVICE}"
        )
    return count


@contextlib.contextmanager
def reserved(work: Task) -> Iterator[PlacementGroup]:
    """What one trial needs; says so if others hold it.

    Raises:
        RunError: they hold it for too long.
    """
    request = work.resources()
    bundles = placement_group(request.bundles, strategy=request.strategy)
    try:
        if not bundles.wait(_PATIENCE):
            lack = f"a trial needs {_needs(work)}; free are {_amounts(ray.available_resources())} in all"
            tell(f"waiting up to {_MOST_PATIENCE} s for the cluster: {lack}")
            if not bundles.wait(_MOST_PATIENCE):
                raise RunError(f"the cluster is busy: {lack}. Try again later; the same command goes on.")
        yield bundles
    finally:
        remove_placement_group(bundles)


def _needs(work: Task) -> str:
    return f"{work.ranks} rank(s) of {work.cpus} CPU, {work.gpus} GPU and {work.memory / GIB:.1f} GiB of memory"


def _amounts(resources: Mapping[str, float]) -> str:
    cpus, gpus, memory = (resources.get(name, 0) for name in ("CPU", "GPU", "memory"))
    return f"{cpus:g} CPU, {gpus:g} GPU, {memory / GIB:.1f} GiB"


def nodes() -> list[Mapping[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def machines() -> int:
    """How many machines the nodes that are alive are on."""
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


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
