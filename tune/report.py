"""Write a search's report.html again, from its trials.parquet, sweep.yaml and the winner's result.

python -m tune.report runs/search
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from job.command_line import Parser
from job.config import read_yaml
from job.errors import InputError, run_main
from job.run.charts import Chart
from job.run.checkpoints import write_atomically
from job.run.report import Figure, duration, percent, template
from tune import charts, records
from tune.folder import CONFIRMED
from tune.records import Summary, groups_of_seeds, ranked, spread, summaries
from tune.space import Range, Space
from tune.winner import train_command

# Below this many trials any statement about importance would be noise.
_FEWEST = 8


def main(argv: list[str] | None = None) -> int:
    """Write the report of the folder that the command line names, and return the exit code."""
    parser = Parser("python -m tune.report", description="Write a search's report.html again.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of a search")
    print(f"report: {write_report(parser.parse_args(argv).folder)}")
    return 0


def write_report(folder: Path) -> Path:
    """Write `report.html` into a search's folder, in one step.

    Raises:
        InputError: there is no search in the folder, one of its files is damaged, or no trial has finished an epoch.
    """
    rows = records.read(folder / "trials.parquet")
    settings = read_yaml(folder / "sweep.yaml")
    result_path, best_path = folder / "best" / "result.json", folder / "best.yaml"
    if missing := {"space", "job", "confirm", "seeds", "ranks_per_trial"} - settings.keys():
        raise InputError(f"{folder / 'sweep.yaml'} is not a search's: it lacks {min(missing)}. Restore it.")
    try:
        result: Mapping[str, Any] = json.loads(result_path.read_text()) if result_path.exists() else {}
    except ValueError as error:
        raise InputError(f"{result_path} is damaged: {error}. Remove the folder and repeat the search.") from None
    trials, confirmed = summaries(rows, "search"), summaries(rows, "confirm")
    # Before all have ended, the luck of a seed or two would show as a winner.
    points = folder / f".{CONFIRMED}.json"
    again = records.candidates(ranked(trials), settings["confirm"])
    again = json.loads(points.read_bytes()) if points.exists() else again
    wanted = len(again) * settings["seeds"]
    whole = len(confirmed) >= wanted and all(trial.status != "running" for trial in confirmed)
    groups = groups_of_seeds(confirmed) if whole else []
    tried = [t for t in trials if t.epochs]
    if not tried:
        raise InputError(f"no trial in {folder} has finished an epoch: there is nothing to report yet.")
    space = Space(settings["space"], settings["job"])
    names = list(space.parameters)
    log = frozenset(n for n, p in space.parameters.items() if isinstance(p, Range) and p.log)
    judged = [t for t in tried if t.sound] or tried
    best = groups[0][0] if groups else next(iter(ranked(judged)), judged[0])
    point = {name: best.settings[name] for name in names}
    same = [t for t in tried if t.trial == best.trial or dict(t.settings) == point]
    curve = same[0] if same else judged[0]
    page = template("tune").render(
        name=folder.resolve().name,
        headline=_headline(trials, confirmed, best, result, settings, groups),
        best=best,
        winner=curve,
        command=train_command(best_path, settings["ranks_per_trial"]) if best_path.exists() else None,
        parameters=charts.parameter_charts(judged, names, log),
        parallel=charts.parallel_chart(judged, names, log) if len(judged) > 1 else None,
        charts=_charts(judged, curve, groups, names, space),
        front={t.trial for t in charts.pareto(judged)},
        trials=sorted(trials, key=lambda t: -t.score),
        groups=[(g[0].settings, mean(t.score for t in g), spread(g), len(g)) for g in groups],
        names=names,
        space=space.texts(),
        settings={n: v for n, v in settings.items() if n not in ("space", "job") and v is not None} | settings["job"],
    )
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _headline(
    trials: Sequence[Summary],
    confirmed: Sequence[Summary],
    best: Summary,
    result: Mapping[str, Any],
    settings: Mapping[str, Any],
    groups: Sequence[Sequence[Summary]],
) -> list[Figure]:
    if groups:
        group = groups[0]
        note = f"± {100 * spread(group):.2f} over {len(group)} seeds"
        figures = [Figure("Best validation accuracy", percent(mean(t.score for t in group)), note)]
    else:
        figures = [Figure("Best validation accuracy", percent(best.score), f"trial {best.number}, one seed")]
    if "test_accuracy" in result:
        figures.append(Figure("Test accuracy", percent(result["test_accuracy"]), "the winner's, seen once"))
    stopped = sum(t.status == "stopped" for t in trials)
    failed = [t for t in trials if not t.sound]
    note = f"{stopped} stopped early" + (f", {len(failed)} failed or refused" if failed else "")
    figures.append(Figure("Trials", str(len(trials)), note))
    cost = duration(sum(t.cost for t in [*trials, *confirmed]))
    figures.append(Figure("Cost", cost, f"of ranks, {settings['ranks_per_trial']} each"))
    return figures


def _charts(
    trials: Sequence[Summary],
    best: Summary,
    groups: Sequence[Sequence[Summary]],
    names: Sequence[str],
    space: Space,
) -> list[Chart]:
    found = [charts.cost_chart(trials), charts.curves_chart(trials, best)]
    if importances := importance(trials, names, space):
        found.append(charts.importance_chart(importances))
    if groups:
        found.append(charts.confirmed_chart(groups))
    return found


def importance(trials: Sequence[Summary], names: Sequence[str], space: Space) -> dict[str, float]:
    """Share of each parameter in what sets the better trials apart, summing to 1; empty for too few trials.

    PED-ANOVA (Watanabe et al., 2023) compares the upper quarter with all: https://arxiv.org/abs/2304.10255.
    """
    if len(names) < 2 or len(trials) < _FEWEST:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: space.parameters[name].distribution() for name in names}
    study = optuna.create_study(direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for trial in trials:
            point = space.nearest(trial.settings)
            study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=trial.score))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return found if any(found.values()) else {}


if __name__ == "__main__":
    run_main(main)
