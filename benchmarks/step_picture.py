"""The picture of benchmarks.step's record."""

from pathlib import Path
from typing import Any


def draw(record: dict[str, Any], path: Path) -> None:
    """Bars of images a second, best and median, beside the machine's limit; and the curves of a table, if any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = record.get("table", [])
    figure, axes = pyplot.subplots(
        1, 2 if rows else 1, figsize=(12 if rows else 7, 4), squeeze=False, layout="constrained"
    )
    bars = axes[0, 0]
    shown = {name: values for name, values in record["contenders"].items() if name != "matmul"}
    for offset, kind in ((0.2, "best"), (-0.2, "median")):
        rates = [64e3 / values[f"{kind}_ms"] for values in shown.values()]
        bars.barh([place + offset for place in range(len(shown))], rates, height=0.38, label=kind)
    bars.axvline(record["images_per_second"] / record["share_of_matmul_rate"], color="black", linestyle=":")
    bars.set_yticks(range(len(shown)), list(shown))
    bars.invert_yaxis()
    bars.set_xlabel("images a second (dotted: the machine's matrix product ÷ 213 MFLOP)")
    bars.set_title(f"One step at 56 px, batch 64\n{record['cpu']}, {record['threads']} threads", fontsize=9)
    bars.legend()
    if rows:
        curves = axes[0, 1]
        for threads, style in zip(sorted({row["threads"] for row in rows}), ("--", "-"), strict=False):
            for colour, resolution in enumerate(sorted({row["resolution"] for row in rows})):
                points = [row for row in rows if row["threads"] == threads and row["resolution"] == resolution]
                label = f"{resolution} px, {threads} threads"
                speeds = [row["images_per_second"] for row in points]
                curves.plot(
                    [row["batch"] for row in points], speeds, style, color=f"C{colour}", marker=".", label=label
                )
        curves.set(xscale="log", yscale="log", xlabel="batch", ylabel="images a second", title="Ours by size of work")
        curves.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
