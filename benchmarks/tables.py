"""Write the tables of docs/ and README.md, and docs/accuracy.png, from the records: `python -m benchmarks.tables`.

A table stands between a line `<!-- NAME -->` and a line `<!-- /NAME -->`, and is replaced whole.
"""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ablation, accuracy, cost_model, search_record
from benchmarks.record import markdown, place, short
from job.errors import RunError, run_main

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks/records"
PAGES = [ROOT / page for page in
         ("README.md", "docs/results.md", "docs/performance.md", "docs/images.md", "docs/search.md")]  # fmt: skip
NAMES = {  # {} is PyTorch's version
    "stock": "stock Keras in `fit`",
    "pytorch channels-last compiled": "PyTorch {}, channels-last, compiled",
    "pytorch channels-last": "PyTorch {}, channels-last",
    "pytorch contiguous compiled": "PyTorch {}, compiled",
    "pytorch contiguous": "PyTorch {}",
    "pytorch channels-last bfloat16": "PyTorch {}, channels-last, autocast to bfloat16",
    "pytorch channels-last bfloat16 compiled": "PyTorch {}, channels-last, compiled, autocast to bfloat16",
    "ours bfloat16": "ours, products in bfloat16 (`--precision bfloat16`)",
}

OPERATIONS = {
    "FashionPointwise": "products of the 1×1 convolutions, forward",
    "FashionPointwiseGradient": "and backward",
    "FashionDepthwise": "depthwise, forward",
    "FashionDepthwiseGradient": "and backward",
    "FashionGrey": "first convolution, forward",
    "FashionGreyGradient": "and backward",
    "FashionNormalise": "scale and shift of normalisations, forward",
    "FashionNormaliseGradient": "and backward",
    "FashionAdam": "Adam",
}
"""What the profile of a step tells apart."""


def main() -> int:
    tables = made()
    for path in PAGES:
        path.write_text(filled(path.read_text(), tables))
    accuracy.draw(_record("accuracy.json")["runs"], ROOT / "docs/accuracy.png")
    return 0


def made() -> dict[str, str]:
    """Each table by name, from the records as they are."""
    runs, stocks = _record("accuracy.json")["runs"], _record("stock.json")["machines"]
    as_they_are = [run for run in runs if not accuracy.changed(run)]
    step_record, scaling_record = _record("step.json"), _record("scaling.json")
    tables = {
        "accuracy": accuracy.table(runs),
        "accuracy in brief": accuracy.table(as_they_are),
        "paired": accuracy.paired(runs)
        or "None yet: that takes two recipes with two seeds in common on one processor.",
        "runs": each_run(runs),
        "speed": speed(as_they_are, stocks),
        "step": step(step_record),
        "step in bfloat16": step(_record("step_amx.json")),
        "step on an EPYC": step(_record("step_epyc.json")),
        "profile": profile(_record("profile.json")),
        "work": work(step_record["table"]),
        "input": pipeline(_record("input.json"), _record("step_epyc.json")),
        "ranks": ranks(scaling_record),
        "messages": messages(scaling_record["messages"]),
        "tuning": tuning(scaling_record["tuning"]),
        "allocator": allocator(_record("allocator.json")),
        "model": cost_model.markdown(scaling_record, cost_model.parser().parse_args(["--record", "scaling.json"])),
    }
    for path in RECORDS.glob("ablation_*.json"):
        tables[f"ablation of {path.stem.removeprefix('ablation_')}"] = each_part(_record(path.name))
    tables |= {f"image {target}": image(found) for target, found in _record("images.json").items()}
    return tables | search_record.tables(RECORDS / "search")


def filled(text: str, tables: Mapping[str, str]) -> str:
    """A page with its tables as they are now. Raises RunError where a table's end isn't marked."""
    for name, table in tables.items():
        before, found, rest = text.partition(f"<!-- {name} -->\n")
        if found:
            _, end, after = rest.partition(f"<!-- /{name} -->")
            if not end:
                raise RunError(f"a page has no line <!-- /{name} -->: add it, since the table's end is not known.")
            text = f"{before}{found}{table}\n{end}{after}"
    return text


def each_run(runs: Sequence[dict[str, Any]]) -> str:
    """A Markdown line a run."""
    heads = ["recipe", "processor", "seed", "parts", "epochs", "weights of epoch", *accuracy.JUDGED]
    rows = []
    for run in runs:
        reached = "not reached" if run["seconds_to_94_5"] is None else f"{run['seconds_to_94_5']:.0f}"
        if run["protocol"] == "original":
            reached = accuracy.NONE
        name, processor, weights = accuracy.kind(run)
        judged = run["epochs"] if run["values"]["select"] == "last" else run["best_epoch"] or accuracy.NONE
        counts = [run["seed"], run["environment"].get("part", 1), run["epochs"], judged]
        seconds = f"{run['seconds']:.0f}"
        rows.append([name, processor, *counts, *accuracy.accuracies([run]), seconds, reached, weights])
    return markdown([*heads, "seconds", "to 94.5 %", "weights"], rows, accuracy.SHARED)


def speed(runs: Sequence[dict[str, Any]], stocks: Sequence[dict[str, Any]]) -> str:
    """`fast` to 94.5 %, and what the original's 20 epochs take in stock `fit`, a line a processor and precision.

    A seed that doesn't get there counts as slower than all others in the median.
    """
    heads = ["processor", "`fast`", "at 94.5 % validation", "median s"]
    heads += ["20 epochs in stock `fit` by its quickest turns, s", "by its median turns, s", "weights"]
    rows = []
    fast = accuracy.by_kind([run for run in runs if run["recipe"] == "fast"])
    for stock, ((name, processor, weights), mine) in itertools.product(stocks, fast.items()):
        if place(stock) != processor:
            continue
        seconds = [run["seconds_to_94_5"] or math.inf for run in mine]
        reached, median = sum(s < math.inf for s in seconds), statistics.median(seconds)
        row = [
            processor,
            name,
            f"{reached} of {len(mine)} seeds",
            f"{median:.0f}" if median < math.inf else accuracy.NONE,
        ]
        for of in ("extrapolated", "by_median_turns"):
            original = stock[f"seconds_for_20_epochs_{of}"]
            share = f"1/{original / median:.1f}, " if median < math.inf else ""
            soon = sum(s <= original / 12 for s in seconds)
            row.append(f"{original:,.0f} ({share}{soon} of {len(mine)} seeds within 1/12)")
        rows.append([*row, weights])
    return markdown(heads, rows, accuracy.SHARED)


def each_part(record: dict[str, Any]) -> str:
    """What benchmarks.ablation measured, and where."""
    commits = ", ".join(dict.fromkeys(short(row["commit"]) for row in record["rows"]))
    how = f"{record['values']['epochs']} epochs, {record['precision']}, {record['processor']}, commit {commits}:"
    return f"{how}\n\n{ablation.table(record['rows'])}"


def step(record: dict[str, Any]) -> str:
    """The contenders of benchmarks.step, the quickest first."""
    contenders = {name: values for name, values in record["contenders"].items() if name != "matmul"}
    best = contenders["ours"]["best_ms"]
    torch = record["versions"].get("torch", "").partition("+")[0]
    lines = ["| | best ms | median ms | images/s (best) | time, ours in float32 = 1 |", "| --- " * 5 + "|"]
    for name, values in sorted(contenders.items(), key=lambda item: item[1]["best_ms"]):
        lines.append(
            f"| {NAMES.get(name, name).format(torch)} | {values['best_ms']:.1f} | {values['median_ms']:.1f} | "
            f"{64e3 / values['best_ms']:,.0f} | {values['best_ms'] / best:.2f} |"
        )
    speeds = " and ".join(f"{speed:,.0f}" for speed in record["runs_images_per_second"])
    agree = {True: ": they agree to 10 %", False: ": they do not agree to 10 %", None: ""}
    count = len(record["runs_images_per_second"])
    whole = "One run" if count == 1 else f"{count} whole runs"
    versions = f"TensorFlow {record['versions']['tensorflow']}, Keras {record['versions']['keras']}"
    rate, share = record["matmul_gflop_per_second"], 100 * record["share_of_matmul_rate"]
    exact = 100 * record["share_of_matmul_rate_by_exact_count"]
    lines += [
        "",
        f"{record['cpu']}, {record['threads']} threads, {record['date']}, {versions}.",
        f"{whole} gave {speeds} images/s{agree[record['runs_agree_to_10_percent']]}.",
        f"The machine's large matrix product reaches {rate:.0f} GFLOP/s.",
        f"At 213 MFLOP an image, as usually counted, our step is {share:.0f} % of that rate;",
        f"at the 165 that the layers have at this size (maps are rounded down) {exact:.0f} %.",
    ]
    if halved := record.get("bfloat16"):
        ratio = halved["ratio_to_pytorch"]
        lines.append(
            f"In bfloat16: {halved['images_per_second']:,.0f} images/s, "
            + (f"{ratio:.2f} times the fastest PyTorch, autocast or not, and " if ratio else "")
            + f"{halved['ratio_to_stock_keras']:.2f} times stock Keras (in float32)."
        )
    return "\n".join(lines)


def profile(record: dict[str, Any]) -> str:
    """Where a step's time goes: milliseconds, share and rate against the large product's, by kind of operation."""
    lines = ["| operation | ms | of the step | of the matrix-product rate |", "| --- | --- | --- | --- |"]
    whole, large, rest = record["step_ms"], record["matmul_gflop_per_second"], record["step_ms"]
    for kind, name in OPERATIONS.items():
        mine = [operation for operation in record["operations"] if operation["operation"] == kind]
        took, mflop = (sum(operation[key] for operation in mine) for key in ("ms", "mflop"))
        rest -= took
        rate = f"{100 * mflop / took / large:.0f} %" if mflop else "–"
        lines.append(f"| {name} | {took:.1f} | {100 * took / whole:.0f} % | {rate} |")
    lines += [
        f"| TensorFlow's own operations, and what lies between | {rest:.1f} | {100 * rest / whole:.0f} % | – |",
        "",
        f"{record['processor']}, one thread, {record['date']}, commit {short(record['commit'])}: a step takes "
        f"{whole:.0f} ms, the large product reaches {large:.0f} GFLOP/s.",
    ]
    return "\n".join(lines)


def work(rows: Sequence[dict[str, Any]]) -> str:
    """Images a second over resolution and batch, for each number of threads."""
    batches = sorted({row["batch"] for row in rows})
    lines = [f"| px | threads | {' | '.join(f'batch {batch}' for batch in batches)} |"]
    lines.append("| --- " * (len(batches) + 2) + "|")
    for resolution, threads in sorted({(row["resolution"], row["threads"]) for row in rows}):
        speeds = {r["batch"]: r["images_per_second"] for r in rows
                  if (r["resolution"], r["threads"]) == (resolution, threads)}  # fmt: skip
        lines.append(f"| {resolution} | {threads} | {' | '.join(f'{speeds[batch]:,.0f}' for batch in batches)} |")
    return "\n".join(lines)


def pipeline(record: dict[str, Any], step_record: dict[str, Any]) -> str:
    """What benchmarks.input measured, and how many times as many that is as a step takes on the same processor."""
    lines = ["| | median images/s | best |", "| --- | --- | --- |"]
    lines += [f"| {name} | {found['median']:,} | {found['best']:,} |" for name, found in record["results"].items()]
    lines += ["", machine(record)]
    if record["processor"] == step_record["cpu"]:
        median = record["results"]["the same through tf.data"]["median"]
        steps = {"float32": step_record, "bfloat16": step_record["bfloat16"]}
        times = " and ".join(f"{median / s['images_per_second']:.0f} ({name})" for name, s in steps.items() if s)
        lines.append(f"The last row is {times} times what a step at 56 px and batch {record['batch']} takes.")
    return "\n".join(lines)


def machine(record: dict[str, Any]) -> str:
    """Where and when something was measured."""
    commit = f", commit {short(record['commit'])}" if record.get("commit") else ""
    return f"{record.get('processor') or record['cpu']}, {record['date']}{commit}."


def ranks(record: dict[str, Any]) -> str:
    """What benchmarks.scaling measured of steps."""
    threads = next(row["threads"] for row in record["steps"] if not row["ranks"])
    lines = ["| | images each | best ms | median ms | images/s | waiting for the exchange |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in record["steps"]:
        name = (
            f"{row['ranks']} rank(s), {row['threads']} thread(s) each"
            if row["ranks"]
            else f"one process, {threads} threads"
        )
        name += {"as it is": "", "messages": ", by messages", "none": ", without exchange"}[row["exchange"]]
        lines.append(
            f"| {name} | {row['batch']} | {row['best_ms']:.1f} | {row['median_ms']:.1f} | "
            f"{row['images_per_second']:,.0f} | {100 * row['share_waited']:.0f} % |"
        )
    peaks = ", ".join(f"{record['peak_memory_mib'][str(count)]} MiB ({count})" for count in (1, 2, 4))
    share = 100 * record["two_ranks_to_one_process"]
    local = 100 * record["two_ranks_to_one_process_at_equal_local_batch"]
    lines += [
        "",
        f"Two ranks reach {share:.0f} % of one process with {threads} threads at equal global batch (64),",
        f"{local:.0f} % at equal local batch.",
        f"Peak memory of a rank, by number of ranks: {peaks}.",
        machine(record),
    ]
    return "\n".join(lines)


def image(found: dict[str, Any]) -> str:
    """What an image takes, part by part."""
    return (
        f"{found['bytes'] / 1e9:.2f} GB, built from {found['revision'][:12]}, {found['date']}, {found['engine']}:\n\n"
        f"{found['shares']}"
    )


def messages(rows: Sequence[dict[str, Any]]) -> str:
    """Best milliseconds of an all-reduce by size."""
    counts = sorted({row["ranks"] for row in rows})
    lines = [f"| bytes | {' | '.join(f'{count} ranks, ms' for count in counts)} |", "| --- " * (len(counts) + 1) + "|"]
    for size in sorted({row["bytes"] for row in rows}):
        best = [next(r["best_ms"] for r in rows if (r["bytes"], r["ranks"]) == (size, count)) for count in counts]
        lines.append(f"| {size:,} | {' | '.join(f'{value:.1f}' for value in best)} |")
    return "\n".join(lines)


def tuning(rows: Sequence[dict[str, Any]]) -> str:
    """A step of two ranks under other settings of Horovod's."""
    lines = ["| fusion threshold, MiB | cycle time, ms | best ms | median ms |", "| --- | --- | --- | --- |"]
    for row in rows:
        settings = f"{row['fusion_threshold_mib']} | {row['cycle_time_ms']}"
        lines.append(f"| {settings} | {row['best_ms']:.1f} | {row['median_ms']:.1f} |")
    return "\n".join(lines)


def allocator(record: dict[str, Any]) -> str:
    """Milliseconds a step, best (median), by allocator."""
    rows = record["results"]
    names = list(dict.fromkeys(row["allocator"] for row in rows))
    lines = [f"| | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for operations in dict.fromkeys(row["operations"] for row in rows):
        found = {r["allocator"]: r for r in rows if r["operations"] == operations}
        cells = " | ".join(f"{found[name]['best_ms']:.1f} ({found[name]['median_ms']:.1f})" for name in names)
        lines.append(f"| {operations} | {cells} |")
    return "\n".join([*lines, "", f"Milliseconds a step, best (median). {machine(record)}"])


def _record(name: str) -> Any:
    return json.loads((RECORDS / name).read_text())


if __name__ == "__main__":
    run_main(main)
