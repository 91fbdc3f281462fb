"""Write the tables of accuracy from the records into docs/results.md and README.md: `python -m benchmarks.results`.

A table stands between a line `<!-- NAME -->` and a line `<!-- /NAME -->`, and is replaced whole.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import ablation, accuracy

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks/records"


def main() -> None:
    runs = _record("accuracy.json")["runs"]
    tables = {"accuracy": accuracy.table(runs), "runs": each_run(runs)}
    if stock := _record("stock.json"):
        tables["speed"] = speed(runs, stock)
    if record := _record("ablation.json"):
        tables["ablation"] = ablation.table(record["rows"])
    for path in (ROOT / "docs/results.md", ROOT / "README.md"):
        text = path.read_text()
        for name, table in tables.items():
            before, found, rest = text.partition(f"<!-- {name} -->\n")
            if found:
                _, end, after = rest.partition(f"<!-- /{name} -->")
                text = f"{before}{found}{table}\n{end}{after}"
        path.write_text(text)


def each_run(runs: Sequence[dict[str, Any]]) -> str:
    """A Markdown line a run."""
    lines = ["| recipe | seed | ranks | epochs | validation | test | test with flips | seconds | to 94.5 % | weights |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in runs:
        accuracies = " | ".join(f"{100 * run[name]:.2f}" for name in
                                ("val_accuracy", "test_accuracy", "test_accuracy_with_flips"))  # fmt: skip
        reached = "–" if run["seconds_to_94_5"] is None else f"{run['seconds_to_94_5']:.0f}"
        lines.append(
            f"| {run['recipe']} | {run['seed']} | {run['ranks']} | {run['epochs']} | {accuracies} | "
            f"{run['seconds']:.0f} | {reached} | {run['weights']} |"
        )
    return "\n".join(lines)


def speed(runs: Sequence[dict[str, Any]], stock: dict[str, Any]) -> str:
    """How many times as long the original's 20 epochs take in stock `fit` as `fast` takes to 94.5 %."""
    original = stock["seconds_for_20_epochs_extrapolated"]
    reached = [run["seconds_to_94_5"] for run in runs if run["recipe"] == "fast" and run["seconds_to_94_5"]]
    if not reached:
        return "`fast` has not reached 94.5 %."
    seconds = statistics.median(reached)
    return (
        f"The original recipe's 20 epochs in the stock model's own `fit`: {original:,.0f} s (extrapolated from "
        f"{stock['images_per_second']:.0f} images/s). `fast` to 94.5 % validation: median {seconds:.0f} s, "
        f"**1/{original / seconds:.1f}** of that."
    )


def _record(name: str) -> Any:
    path = RECORDS / name
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main()
