"""A model of what more ranks bring, checked against measured points: where scaling stops, and what moves that.

python -m benchmarks.cost_model --record benchmarks/records/scaling.json

Prints Markdown. A ring all-reduce of B bytes in M messages over N ranks takes 2 (N - 1) M latency + 2 (N - 1) / N ·
B / bandwidth (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"), and
Horovod's negotiation comes before it. The table is a model, not a measurement.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RANKS = [2**power for power in range(11)]
BACKWARD = 2 / 3
"""Share of a step in which gradients become ready: two of the three passes."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What connects ranks."""

    latency: float
    """Seconds until a message has made one hop."""
    bandwidth: float
    """Bytes a second, each way."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """How gradients travel."""

    link: Link
    """Between hosts, or between all ranks where `local` is 1."""
    start: float
    """Seconds of Horovod's negotiation, once for each exchange."""
    local: int = 1
    """Ranks of a host."""
    fast: Link | None = None
    """Between the ranks of a host; needed where `local` is above 1."""
    hierarchical: bool = True
    """Whether the ranks of a host first bring their gradients together; else one ring goes through all ranks."""


def ring(ranks: int, size: float, messages: int, link: Link) -> float:
    """Seconds of a ring all-reduce of so many bytes, cut into so many messages."""
    return 2 * (ranks - 1) * (messages * link.latency + size / ranks / link.bandwidth)


def exchange(ranks: int, size: float, messages: int, network: Network) -> float:
    """Seconds of one exchange of gradients; 0 for a rank alone.

    In the hierarchical one a host's ranks reduce and scatter over the fast link, ring with their like on the other
    hosts, each with its share of the bytes but all through the host's one link, and gather over the fast link.
    """
    if ranks == 1:
        return 0.0
    local = min(network.local, ranks)
    if network.fast and not network.hierarchical and ranks > local:
        # Of a host's hops one leaves it; the bytes go no faster than over that.
        latency = (network.link.latency + (local - 1) * network.fast.latency) / local
        return network.start + ring(ranks, size, messages, Link(latency=latency, bandwidth=network.link.bandwidth))
    hosts = ranks // local
    within = ring(local, size, messages, network.fast) if network.fast and local > 1 else 0.0
    return network.start + within + ring(hosts, size, messages, network.link)


def step(compute: float, exchanged: float, overlap: float) -> float:
    """Seconds of a step: the part `overlap` of the exchange hides behind the backward pass, as far as that is long."""
    return compute + exchanged - min(overlap * exchanged, BACKWARD * compute)


def fit(messages: Sequence[dict[str, Any]]) -> tuple[float, Link]:
    """Negotiation (seconds) and link that fit measured all-reduces best, in relative terms; none is negative."""
    rows = np.array([[1.0, 2 * (m["ranks"] - 1), 2 * (1 - 1 / m["ranks"]) * m["bytes"]] for m in messages])
    seconds = np.array([m["best_ms"] / 1e3 for m in messages])
    weighed = rows / seconds[:, None]
    used = [0, 1, 2]
    while True:
        found = np.linalg.lstsq(weighed[:, used], np.ones(len(seconds)), rcond=None)[0]
        if (found >= 0).all():
            break
        del used[int(found.argmin())]
    start, latency, per_byte = (float(found[used.index(i)]) if i in used else 0.0 for i in range(3))
    return start, Link(latency=latency, bandwidth=1 / per_byte if per_byte else float("inf"))


@dataclass(frozen=True)
class Point:
    """A measured step beside the model's."""

    ranks: int
    batch: int
    measured: float
    modelled: float


def check(record: dict[str, Any]) -> tuple[Network, float, list[Point]]:
    """The network and the overlap as fitted, and all points with more than one rank.

    Only the all-reduces by size and the step of two ranks at the smallest batch are fitted to; the other points are
    predicted, from what the same ranks take without an exchange.
    """
    start, link = fit(record["messages"])
    network = Network(link=link, start=start)
    best = {(row["ranks"], row["batch"], row["exchange"]): row["best_ms"] / 1e3 for row in record["steps"]}
    points = sorted((ranks, batch) for ranks, batch, exchanged in best if ranks > 1 and exchanged == "messages")

    def exchanged(ranks: int) -> float:
        return exchange(ranks, record["gradients"]["bytes"], record["gradients"]["messages"], network)

    first, batch = points[0]
    seen = best[first, batch, "messages"] - best[first, batch, "none"]
    overlap = min(max(1 - seen / exchanged(first), 0.0), 1.0)
    modelled = [
        Point(ranks, batch, best[ranks, batch, "messages"], step(best[ranks, batch, "none"], exchanged(ranks), overlap))
        for ranks, batch in points
    ]
    return network, overlap, modelled


@dataclass(frozen=True)
class Plan:
    """A way to train on many ranks: what a rank computes between two exchanges, and how these travel."""

    name: str
    images: int
    """Per rank and update."""
    compute: float
    """Seconds between two exchanges."""
    network: Network
    overlap: float

    def efficiency(self, ranks: int, size: float, messages: int) -> float:
        """Images a second and rank, relative to one rank alone."""
        return self.compute / step(self.compute, exchange(ranks, size, messages, self.network), self.overlap)


def plans(host_step: float, options: argparse.Namespace) -> list[Plan]:
    """The columns of the table; `host_step`: measured seconds of 64 images on one host of two cores."""

    def gpu(batch: int) -> float:
        return (options.gpu_step_ms + batch * options.gpu_image_us / 1e3) / 1e3

    start = options.start_ms / 1e3
    ethernet = Link(latency=30e-6, bandwidth=1.25e9)
    link = Link(latency=options.latency_us / 1e6, bandwidth=options.bandwidth * 1e9)
    fast = Link(latency=options.local_latency_us / 1e6, bandwidth=options.local_bandwidth * 1e9)
    levels = Network(link=link, start=start, local=options.local, fast=fast)
    flat = replace(levels, hierarchical=False)
    return [
        Plan("CPU hosts, 10 Gbit/s", 64, host_step, Network(link=ethernet, start=start), 0.0),
        Plan("GPUs, one ring", 64, gpu(64), flat, options.overlap),
        Plan("GPUs, hierarchical", 64, gpu(64), levels, options.overlap),
        Plan("… 256 images a rank", 256, gpu(256), levels, options.overlap),
        # Only the last of the batches has a backward pass to hide behind: so no overlap, to be on the safe side.
        Plan("… 64 images, 4 accumulated", 256, 4 * gpu(64), levels, 0.0),
    ]


def stops(efficiency: Callable[[int], float], limit: float) -> int | None:
    """The smallest power of two of ranks at which efficiency is below the limit; None if it never is."""
    return next((ranks for ranks in RANKS if efficiency(ranks) < limit), None)


def markdown(record: dict[str, Any], options: argparse.Namespace) -> str:
    """The section of docs/performance.md."""
    size, messages = record["gradients"]["bytes"], record["gradients"]["messages"]
    network, overlap, points = check(record)
    host = next(row["best_ms"] for row in record["steps"] if row["ranks"] == 0) / 1e3
    columns = plans(host, options)
    lines = [
        f"Fitted to the all-reduces of {record['date']} ({record['cpu']}): negotiation {1e3 * network.start:.2f} ms, "
        f"latency {1e6 * network.link.latency:.0f} µs, bandwidth {network.link.bandwidth / 1e9:.2f} GB/s; "
        f"{100 * overlap:.0f} % of the exchange hidden (from the first point below). An update sends "
        f"{size / 1e6:.1f} MB in {messages} messages.",
        "",
        "| ranks | images each | measured ms | model ms | model is |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {p.ranks} | {p.batch} | {1e3 * p.measured:.1f} | {1e3 * p.modelled:.1f} | "
        f"{100 * (p.modelled / p.measured - 1):+.0f} % |"
        for p in points
    ]
    lines += [
        "",
        "**A model, not a measurement.** Efficiency: images a second and rank, relative to one rank. Assumed: a GPU "
        f"takes {options.gpu_step_ms:g} ms a step, {options.gpu_image_us:g} µs an image; {options.local} GPUs a host "
        f"at {options.local_bandwidth:g} GB/s and {options.local_latency_us:g} µs; hosts at {options.bandwidth:g} GB/s "
        f"and {options.latency_us:g} µs; {options.start_ms:g} ms of negotiation; {100 * options.overlap:.0f} % hidden. "
        f"The CPU host takes {1e3 * host:.0f} ms for 64 images (measured), 30 µs, nothing hidden.",
        "",
        "| ranks | " + " | ".join(plan.name for plan in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]

    def efficiency(plan: Plan) -> Callable[[int], float]:
        return lambda ranks: plan.efficiency(ranks, size, messages)

    for ranks in RANKS:
        shares = " | ".join(f"{100 * efficiency(plan)(ranks):.0f} %" for plan in columns)
        lines.append(f"| {ranks:,} | {shares} |")
    for limit in (0.8, 0.5):
        ends = (stops(efficiency(plan), limit) for plan in columns)
        lines.append(f"| under {100 * limit:.0f} % from | " + " | ".join(f"{n:,}" if n else "–" for n in ends) + " |")
    most = max(RANKS)
    lines.append("| images an update at " + f"{most:,} | " + " | ".join(f"{most * p.images:,}" for p in columns) + " |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line; all that is assumed and not measured is an option."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description="Model cost against ranks.")
    result.add_argument("--record", type=Path, required=True, help="what benchmarks.scaling wrote")
    result.add_argument("--gpu-step-ms", type=float, default=4.0, help="a GPU's time for a step of no images (4)")
    result.add_argument("--gpu-image-us", type=float, default=40.0, help="and for each image (40)")
    result.add_argument("--local", type=int, default=8, help="GPUs of a host (8)")
    result.add_argument("--local-bandwidth", type=float, default=200.0, help="GB/s between them (200)")
    result.add_argument("--local-latency-us", type=float, default=5.0, help="latency between them (5)")
    result.add_argument("--bandwidth", type=float, default=12.5, help="GB/s between hosts (12.5: 100 Gbit/s)")
    result.add_argument("--latency-us", type=float, default=10.0, help="latency between hosts (10)")
    result.add_argument("--start-ms", type=float, default=1.0, help="Horovod's negotiation (1: its cycle time)")
    result.add_argument("--overlap", type=float, default=0.5, help="share of the exchange that GPUs hide (0.5)")
    return result


def main() -> None:
    """Print the section."""
    options = parser().parse_args()
    print(markdown(json.loads(options.record.read_text()), options))


if __name__ == "__main__":
    main()
