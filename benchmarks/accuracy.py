"""How accurate a recipe is, over several seeds: `python -m benchmarks.accuracy --recipe fast --seeds 3`.

Each seed is a run of `job.train` of its own, in a folder of its own: stop this command and repeat it, and it goes on.
Options behind `--` are handed to `job.train`. A finished run is in the record at once, and what the record holds of
other runs stays in it.

    python -m benchmarks.accuracy --recipe fast --seeds 3 --json FILE --picture FILE [-- --weights FILE --precision …]
"""

import itertools
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks import record
from benchmarks.record import place
from job.command_line import Parser, count
from job.config import CIRCUMSTANCES, Config, parse, parse_flags, plain, resolve
from job.errors import InputError, RunError, run_main, stop_when_told
from job.recipes import RECIPES

GOAL = 0.945
FIRST_SEED = 2017
OURS = {"recipe", "seed", "run", "config", "threads", "print_config"}
"""Options that this command chooses for each run, or that make no comparable run of it."""
TOLD_APART = {"recipe", "seed", "weights", "precision", "protocol"}
"""Options that have a place of their own in a record; `values` has the others."""
NONE = "–"
JUDGED = ("validation", "test", "test, flip TTA")
SHARED = ("processor", "weights")


def main() -> int:
    argv = sys.argv[1:]
    end = argv.index("--") if "--" in argv else len(argv)
    parser = Parser("python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, action="append", required=True, help="may be given several times")
    parser.add_argument("--seeds", type=count, default=3, help=f"how many, from {FIRST_SEED} on")
    parser.add_argument("--ranks", type=count, default=1, help="ranks of each run on this machine")
    parser.add_argument("--folder", type=Path, default=Path("runs/accuracy"), help="where the runs are kept")
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--picture", type=Path, help="write validation accuracy against minutes here")
    args = parser.parse_args(argv[:end])
    options = argv[end + 1 :]
    if ours := parse_flags(options, "python -m job.train").keys() & OURS:
        raise InputError(f"option {min(ours)} can't stand behind --. Leave it out.")
    if args.picture and not args.picture.parent.is_dir():
        raise InputError(f"the folder of {args.picture} is not there. Make it, or name another with --picture.")
    together(record.read(args.json, "runs")["runs"], [])  # what is wrong with it is told before anything is trained
    stop, runs = stop_when_told(), []
    for recipe, number in itertools.product(args.recipe, range(args.seeds)):
        job = ["--recipe", recipe, "--seed", str(FIRST_SEED + number), *options]
        config = parse(job)
        ranks = f"-{args.ranks}-ranks" if args.ranks > 1 else ""
        folder = args.folder / f"{config.folder().name}{ranks}"
        if code := train([*job, "--run", str(folder)], args.ranks, stop):
            return code
        again = f"-m benchmarks.accuracy --recipe {recipe} --seeds {args.seeds} --ranks {args.ranks}"
        runs.append(summary(config, folder, f"{again} -- {shlex.join(without_folders(options))}"))
        every = together(record.read(args.json, "runs")["runs"], runs)  # others may have written meanwhile
        record.write(args.json, {"runs": every})
    print("\n\n".join(part for part in (table(runs), paired(runs)) if part))
    if args.picture:
        draw(every, args.picture)
    return 0


def without_folders(options: Sequence[str]) -> list[str]:
    """Options of job.train with the names of files alone: where they lay is nobody's business."""
    flags = parse_flags(options, "python -m job.train")
    paths = [str(flags[name]) for name in ("weights", "data_dir") if name in flags]
    return [next((o.replace(p, Path(p).name) for p in paths if o == p or o.endswith(f"={p}")), o) for o in options]


def together(earlier: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These runs and the earlier ones, but for those that they repeat, in the recipes' order.

    Raises InputError: an earlier one is no run.
    """
    try:
        mine = {(*kind(run), run["seed"]) for run in runs}
        every = [run for run in earlier if (*kind(run), run["seed"]) not in mine] + [*runs]
        return sorted(every, key=lambda run: (list(RECIPES).index(run["recipe"]), *kind(run), run["seed"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the record holds something that is no run of a recipe: {error!r}. Name another.") from None


def train(options: Sequence[str], ranks: int, stop: Event) -> int:
    """Finish one run, or hand it on that this command is to stop. The run's exit code."""
    # The launcher hands a rank's exit code on (75: stopped, and may go on), which horovodrun does not.
    launcher = ["-m", "horovod_keras.launch", "--ranks-per-pod", str(ranks), "--", sys.executable] if ranks > 1 else []
    command, told = [sys.executable, *launcher, "-m", "job.train", *options], False
    # In a session of its own, since the launcher takes a second signal (a terminal's, and then ours) for impatience.
    process = subprocess.Popen(command, start_new_session=True)
    while True:
        try:
            return ended(process.wait(timeout=1))
        except subprocess.TimeoutExpired:
            if stop.is_set() and not told:
                told = True
                process.terminate()


def ended(code: int) -> int:
    """A run's exit code. Raises RunError if a signal killed it: it could not say so itself."""
    if code < 0:
        raise RunError(f"the run was killed by signal {-code}. The same command goes on.")
    return code


def history(folder: Path) -> list[dict[str, Any]]:
    """The epochs' records of a run, none if it hasn't begun."""
    path = folder / "metrics.jsonl"
    # A line without its end was cut short: the run makes that epoch's again when it goes on.
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def summary(config: Config, folder: Path, command: str) -> dict[str, Any]:
    """One run's line of the record; `command` makes it again.

    `seconds_to_94_5` is the run's wall time until its first epoch, of those at the final resolution, with that accuracy
    on the validation split, the start of its process included; None if there was none, or no validation split.
    """
    result = json.loads((folder / "result.json").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    for part in (environment, *environment.get("earlier", [])):  # paths of the machine are nobody's business
        part.pop("command", None)
        part |= {"kernels": part["kernels"].partition(" (")[0]} if "kernels" in part else {}
    epochs = history(folder)
    honest = config.protocol == "honest"
    final = [epoch for epoch in epochs if honest and epoch["resolution"] == config.resolution]
    reached = [epoch["elapsed"] for epoch in final if epoch["val_accuracy"] >= GOAL]
    weights = Path(config.weights).resolve().name
    measured = ["val_accuracy", "test_accuracy", "test_accuracy_with_flips", "seconds", "epochs", "best_epoch", "ranks"]
    measured += ["seconds_to_first_step", "peak_memory_mib", "halvings"]
    return {
        "recipe": config.recipe,
        "precision": config.precision,
        "protocol": config.protocol,
        "values": {name: value for name, value in plain(config).items() if name not in CIRCUMSTANCES | TOLD_APART},
        "seed": config.seed,
        "weights": weights,
        **{name: result[name] for name in measured},
        "seconds_to_94_5": reached[0] if reached else None,
        "command": command,
        "environment": environment,
        "history": epochs,
    }


def changed(run: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's values that its recipe, as it is today, has otherwise.

    An option that came after the run had, in it, its neutral default, and not what a recipe may give it by now.
    """
    usual, neutral = plain(resolve([{"recipe": run["recipe"]}])), plain(Config())
    known = {name: run["values"].get(name, neutral[name]) for name in usual if name not in CIRCUMSTANCES | TOLD_APART}
    return {name: value for name, value in known.items() if value != usual[name]}


Kind = tuple[str, str, str]


def kind(run: dict[str, Any]) -> Kind:
    """What runs that differ in their seeds alone share: recipe with what isn't as usual, processor, weights."""
    environment = run["environment"]
    threads = environment.get("threads_per_rank", environment["cores"] // run["ranks"])
    operations = environment.get("kernels", "")
    parts = [run["recipe"]]
    parts += [run["precision"]] if run["precision"] != "float32" else []
    parts += [f"protocol {run['protocol']}"] if run["protocol"] != "honest" else []
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in changed(run).items()]
    parts += [f"{run['ranks']} ranks"] if run["ranks"] != 1 else []
    # The cores that are told are the machine's: a container may have fewer.
    parts += [f"{threads} thread(s) each"] if threads != environment["cores"] // run["ranks"] else []
    parts += ["TensorFlow's operations"] if operations.startswith("TensorFlow") else []
    return ", ".join(parts), place(environment), run["weights"]


def by_kind(runs: Sequence[dict[str, Any]]) -> dict[Kind, list[dict[str, Any]]]:
    """The runs of each kind."""
    return {same: [run for run in runs if kind(run) == same] for same in dict.fromkeys(map(kind, runs))}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds, a Markdown line a recipe."""
    heads = ["recipe", "processor", "seeds", *JUDGED, "minutes", "minutes to 94.5 % validation", "weights"]
    rows = []
    for (name, processor, weights), mine in by_kind(runs).items():
        reached = [run["seconds_to_94_5"] / 60 for run in mine if run["seconds_to_94_5"] is not None]
        goal = f"{spread(reached)} ({len(reached)} of {len(mine)})" if reached else f"not reached (0 of {len(mine)})"
        if mine[0]["protocol"] == "original":
            goal = NONE
        minutes = spread([run["seconds"] / 60 for run in mine])
        rows.append([name, processor, len(mine), *accuracies(mine), minutes, goal, weights])
    return record.markdown(heads, rows, SHARED)


def accuracies(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The cells `JUDGED` of runs of one kind; what was chosen by test images says so."""
    validation, test, flipped = (
        spread([100 * run[key] for run in runs])
        for key in ("val_accuracy", "test_accuracy", "test_accuracy_with_flips")
    )
    if runs[0]["protocol"] == "original":
        images = "flipped test images" if runs[0]["values"]["flip"] else "the test images"
        validation = f"{NONE} (best epoch, by {images}: {validation})"
        test, flipped = f"{test} (of that epoch)", f"{flipped} (of that epoch)"
    return [validation, test, flipped]


def paired(runs: Sequence[dict[str, Any]]) -> str:
    """Differences of test accuracy on one processor, seed by seed, where two seeds or more are the same; else nothing.

    All runs share the test images, so that a difference has less of their standard error than each accuracy has.
    """
    honest = [run for run in runs if run["protocol"] == "honest"]  # the other one's test figure was chosen by
    found = {same: {run["seed"]: run["test_accuracy"] for run in mine} for same, mine in by_kind(honest).items()}
    rows = []
    for ((first, *where), ones), ((second, *another), others) in itertools.combinations(found.items(), 2):
        seeds = sorted(ones.keys() & others.keys())
        if where == another and len(seeds) > 1:
            difference = spread([100 * (others[seed] - ones[seed]) for seed in seeds], sign="+")
            rows.append([second, first, where[0], len(seeds), difference, where[1]])
    heads = ["recipe", "against", "processor", "seeds", "test, seed by seed", "weights"]
    return record.markdown(heads, rows, SHARED) if rows else ""


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean, and the sample's standard deviation where there are two values or more."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def draw(runs: Sequence[dict[str, Any]], picture: Path) -> None:
    """Validation accuracy against minutes, a line a run, of recipes as they are.

    A colour a recipe, a mark a processor, broken in bfloat16, hollow where an epoch's resolution is not the final one.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.add_subplot()
    shown = [run for run in runs if run["protocol"] == "honest" and not changed(run)]
    colours = dict(zip(RECIPES, ("#767676", "#0b7285", "#c2410c"), strict=True))
    marks = dict(zip(dict.fromkeys(place(run["environment"]) for run in shown), itertools.cycle("os^Dv"), strict=False))
    kinds = by_kind(shown)
    told = [index for index, parts in enumerate(zip(*kinds, strict=True)) if index == 0 or len({*parts}) > 1]
    axes.set_title(", ".join(p for i, p in enumerate(next(iter(kinds), ())) if i not in told), fontsize="small")
    for same, mine in kinds.items():
        for label, run in zip([", ".join(same[index] for index in told), *[None] * (len(mine) - 1)], mine, strict=True):
            minutes = [epoch["elapsed"] / 60 for epoch in run["history"]]
            accuracies = [100 * epoch["val_accuracy"] for epoch in run["history"]]
            style = "-" if run["precision"] == "float32" else "--"
            colour, mark = colours[run["recipe"]], marks[place(run["environment"])]
            axes.plot(minutes, accuracies, style, marker=mark, markersize=3.5, linewidth=1, color=colour, label=label)
            small = [epoch["resolution"] < run["values"]["resolution"] for epoch in run["history"]]
            lower = (list(itertools.compress(points, small)) for points in (minutes, accuracies))
            axes.plot(*lower, "", marker=mark, markersize=3.5, linewidth=0, color=colour, markerfacecolor="white")
    axes.axhline(100 * GOAL, color="#999999", linewidth=0.8, linestyle=":")
    # From a few minutes to hours.
    axes.set(xscale="log", xlabel="minutes", ylabel="validation accuracy, %", ylim=(88, None))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", frameon=False, fontsize="small")
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    run_main(main)
