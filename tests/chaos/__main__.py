"""Random faults against the training job, and what became of it: a table.

    sudo .venv/bin/python -m tests.chaos                             # 40 faults under `horovodrun` at 2 to 4 ranks
    sudo .venv/bin/python -m tests.chaos --faults 200 --seed 7       # others
    sudo .venv/bin/python -m tests.chaos --each                      # and each signal at each moment
    sudo .venv/bin/python -m tests.chaos --write docs/reliability.md --json benchmarks/records/chaos.json

Each run of the job is struck by up to four faults, one after another, always going on with the same command; then it
is left alone, must finish with exit code 0, and its weights must be, bit for bit, those of a run that nothing struck.
With `--json` a suite that was stopped goes on when its command is repeated.
Root is needed for the faults that mount a disk or cut a network; without, they are left out.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import psutil

from job.environment import processor
from tests.chaos.faults import ANEW, KINDS, Fault, MissedError, Outcome, draw, expect, left_out, strike
from tests.chaos.job import AFTER, LONGEST, Attempt, Site
from tests.horovod_keras.pods import processes_in

IN_A_ROW = 4
BEGIN, END = "<!-- tests.chaos: begin -->", "<!-- tests.chaos: end -->"
Weights = dict[str, np.ndarray]


class Suite:
    """Runs of one site, and the weights that each must end with, by number of ranks."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._undisturbed: dict[int, Weights] = {}

    def undisturbed(self, ranks: int) -> Weights:
        """The weights of a run that nothing strikes."""
        if ranks not in self._undisturbed:
            self.fresh()
            attempt = self.site.start(ranks)
            assert attempt.wait(LONGEST) == 0, attempt.output()
            self._undisturbed[ranks] = self.site.weights()
        return self._undisturbed[ranks]

    def fresh(self) -> None:
        """Begin another run."""
        shutil.rmtree(self.site.run, ignore_errors=True)

    def run(self, faults: list[Fault]) -> list[Outcome]:
        """Strike one run with these faults (all at the same number of ranks), and let it finish."""
        expected = self.undisturbed(faults[0].ranks)
        self.fresh()
        outcomes: list[Outcome] = []
        for fault in faults:
            if fault.kind in ANEW and self.site.begun():
                self._finish(outcomes[-1], expected)
                self.fresh()
            outcome = self._strike(fault, expected)
            left = processes_in(self.site.folder)
            expect(outcome, not left, f"{len(left)} process(es) left")
            outcomes.append(outcome)
            print(row(outcome), flush=True)
            if self.site.finished():
                self._check(outcome, expected)
                self.fresh()
        if self.site.begun():
            self._finish(outcomes[-1], expected)
        return outcomes

    def _finish(self, outcome: Outcome, expected: Weights) -> None:
        """Leave a run that was struck alone: the same command must take it to its end."""
        self._end_well(self.site.start(outcome.fault.ranks), outcome, expected)

    def _end_well(self, attempt: Attempt, outcome: Outcome, expected: Weights) -> None:
        """Wait for an attempt that nothing strikes: it must go on from what was saved and finish the run."""
        try:
            code = attempt.wait(LONGEST)
        except AssertionError as error:
            self.site.kill()
            expect(outcome, False, f"the same command did not end: {error}")
            return
        expect(outcome, code == 0, f"the same command did not finish the run: exit code {code}")
        expect(outcome, not attempt.began_elsewhere(), attempt.began_elsewhere())
        self._check(outcome, expected)

    def _strike(self, fault: Fault, expected: Weights) -> Outcome:
        for _ in range(3):
            try:
                return strike(self.site, fault)
            except MissedError as missed:
                finished = Outcome(fault=fault)
                self._end_well(missed.attempt, finished, expected)
                self.fresh()
                if finished.wrong:
                    return finished
            except AssertionError as error:
                self.site.kill()
                return Outcome(fault=fault, wrong=str(error))
        raise AssertionError(f"the job always ended before {fault.moment}")

    def _check(self, outcome: Outcome, expected: Weights) -> None:
        try:
            found = self.site.weights() if self.site.finished() else {}
        except (AssertionError, ValueError, LookupError, OSError) as error:
            expect(outcome, False, f"what the run left can't be read: {error}")
            return
        equal = found.keys() == expected.keys() and all(np.array_equal(found[n], expected[n]) for n in expected)
        expect(outcome, equal, "the run did not end with the weights of one that nothing struck")


def chains(faults: list[Fault]) -> list[list[Fault]]:
    """Faults of the same number of ranks, up to `IN_A_ROW` at a time."""
    by_ranks = defaultdict(list)
    for fault in faults:
        by_ranks[fault.ranks].append(fault)
    groups = [some for _, some in sorted(by_ranks.items())]
    return [some[start : start + IN_A_ROW] for some in groups for start in range(0, len(some), IN_A_ROW)]


def row(outcome: Outcome) -> str:
    """One fault, for the terminal."""
    fault = outcome.fault
    when = fault.moment or "before the start"
    what = "continued" if outcome.went_on else "ended"
    verdict = f"WRONG: {outcome.wrong}" if outcome.wrong else "ok"
    return (
        f"{fault} of {fault.ranks} ranks, {when}: {what}, {outcome.seconds:.0f} s, exit {outcome.code}, "
        f"{outcome.repeated} step(s) again; {outcome.said or '–'}; {verdict}"
    )


def table(outcomes: list[Outcome]) -> str:
    """The outcomes by kind, and how often at which moment, as a Markdown table."""
    columns = ["fault", "times", "when", "outcome (exit code of the launcher)", "most seconds to the end of all"]
    columns += ["most steps repeated", "wrong"]
    lines = [f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|\n"]
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in sorted(outcomes, key=lambda o: [*AFTER].index(o.fault.moment) if o.fault.moment else -1):
        groups[outcome.fault.kind].append(outcome)
    for kind, some in sorted(groups.items()):
        moments = Counter(o.fault.moment or "before the start" for o in some)
        ends = Counter(("continued" if o.went_on else "ended", o.code) for o in some)
        cells = [
            kind,
            str(len(some)),
            ", ".join(f"{times} {moment}" for moment, times in moments.items()),
            ", ".join(f"{times} {end} ({code})" for (end, code), times in sorted(ends.items())),
            f"{max(o.seconds for o in some):.0f}",
            str(max(o.repeated for o in some)),
            str(sum(bool(o.wrong) for o in some)),
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def summary(outcomes: list[Outcome], seed: int) -> str:
    """What is above the table: how many, when, where, of which commits, and what is not among them."""
    wrong = sum(bool(o.wrong) for o in outcomes)
    days, commits = ({getattr(o, name) for o in outcomes} for name in ("day", "commit"))
    where = f"{processor()}, {psutil.cpu_count()} cores, commit {', '.join(sorted(commits))}"
    missing = sorted(set(KINDS) - {o.fault.kind for o in outcomes})
    lacks = f" Not among them: {', '.join(missing)}." if missing else ""
    return (
        f"{' and '.join(sorted(days))}, {where}, seed {seed}: {len(outcomes)} faults, "
        f"**{wrong}** with a wrong outcome.{lacks}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=40, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="which")
    parser.add_argument(
        "--each", action="store_true", help="then also each signal at each moment, if chance left it out"
    )
    parser.add_argument("--only", default="", help="kinds of fault that begin so")
    parser.add_argument("--write", type=Path, help="a Markdown file with marks to put the table between")
    parser.add_argument(
        "--json", type=Path, help="a file for every outcome in full; faults that it holds are not made again"
    )
    options = parser.parse_args()
    # So that nothing is left when the suite is cut short.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    earlier = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    known = {outcome.fault: outcome for outcome in map(Outcome.of, earlier)}
    with tempfile.TemporaryDirectory() as folder, Site(Path(folder)) as site:
        faults = draw(options.faults, options.seed, site)
        faults += left_out(faults) if options.each else []
        faults = [fault for fault in faults if fault.kind.startswith(options.only)]
        suite = Suite(site)
        for chain in chains(faults):
            missing = [fault for fault in chain if fault not in known]
            made = suite.run(missing) if missing else []
            known |= {outcome.fault: outcome for outcome in made}
            if any(outcome.wrong for outcome in made):
                shutil.copy(site.log, Path(tempfile.gettempdir()) / f"chaos-{len(known)}.log")
            if options.json and made:
                options.json.write_text(json.dumps([outcome.record() for outcome in known.values()], indent=1) + "\n")
        outcomes = [known[fault] for fault in faults]
    text = f"{summary(outcomes, options.seed)}\n\n{table(outcomes)}"
    print("\n" + text)
    if options.write:
        before, _, rest = options.write.read_text().partition(BEGIN)
        options.write.write_text(f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}")
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
