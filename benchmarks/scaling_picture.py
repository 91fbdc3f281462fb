"""The picture of benchmarks.scaling's record."""

from pathlib import Path
from typing import Any


def draw(record: dict[str, Any], path: Path) -> None:
    """Images a second by ranks, and the time of an all-reduce by its size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, messages) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    rows = [row for row in record["steps"] if row["ranks"] and row["exchange"] == "as it is"]
    whole = max(row["batch"] for row in rows)
    cases = {
        f"{whole} images over all ranks": [row for row in rows if row["batch"] * row["ranks"] == whole],
        f"{whole} images on each rank": [row for row in rows if row["batch"] == whole],
    }
    for (name, points), colour in zip(cases.items(), ("C0", "C1"), strict=True):
        places = [row["ranks"] for row in points]
        speed.plot(places, [row["images_per_second"] for row in points], marker="o", color=colour, label=name)
        medians = [row["images_per_second_median"] for row in points]
        speed.plot(places, medians, marker=".", linestyle="--", color=colour, label="… median")
    one = next(row for row in record["steps"] if row["ranks"] == 0)
    speed.axhline(one["images_per_second"], color="black", linestyle=":", label="one process, all threads")
    speed.set(xlabel="ranks", ylabel="images a second", title=f"{record['cpu']}, {record['cores']} cores")
    speed.set_ylim(bottom=0)
    speed.set_xticks(sorted({row["ranks"] for row in rows}))
    speed.legend(fontsize=8)
    for ranks in sorted({row["ranks"] for row in record["messages"]}):
        points = [row for row in record["messages"] if row["ranks"] == ranks]
        sizes = [row["bytes"] for row in points]
        messages.plot(sizes, [row["best_ms"] for row in points], marker=".", label=f"{ranks} ranks")
    messages.set(xscale="log", yscale="log", xlabel="bytes", ylabel="ms", title="All-reduce (best)")
    messages.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
