"""The faults, and what must become of a job that they strike."""

import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import psutil

from job.environment import commit
from tests.chaos.job import AFTER, EPOCHS, LONGEST, STEPS, Attempt, Site, clear, steps
from tests.horovod_keras.pods import Network, Pods, until

ENDED = 60.0
"""Seconds within which all processes of a job that was struck must have ended."""
PREEMPTED = 30.0
"""Seconds within which all processes of a job that was told to stop must have ended."""
LAUNCHER = -1
WRITING = "writing a checkpoint"
STEPPING = ("mid-epoch", WRITING)
NEARLY_DONE = (EPOCHS - 1) * STEPS
"""Steps on the disk from which on a job that is told to stop may be past its last one: some are still being written."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens, to whom and when; drawn from a seed, so that it can be repeated."""

    kind: str
    ranks: int
    victim: int = LAUNCHER
    """A rank, or LAUNCHER."""
    moment: str = ""
    """One of `MOMENTS`, or nothing: before the job starts."""
    seed: int = 0

    def __str__(self) -> str:
        what, _, whom = self.kind.rpartition(" ")
        named = {"rank": f" of rank {self.victim}", "launcher": " of the launcher"}.get(whom)
        return f"{what}{named}" if named else self.kind


@dataclass(kw_only=True)
class Outcome:
    """What became of the job."""

    fault: Fault
    went_on: bool = False
    """Whether the same attempt finished the run; otherwise it ended, to be started again."""
    seconds: float = 0.0
    """From the fault to the end of the job's last process."""
    code: int = 0
    """Of the launcher."""
    repeated: int = 0
    """Steps that had been made and must be made again."""
    said: str = ""
    """The line that told it."""
    wrong: str = ""
    """What should not be so; empty where all is well."""
    day: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))
    commit: str = field(default_factory=lambda: str(commit())[:12])

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """The outcome that `record` gave."""
        return cls(**record | {"fault": Fault(**record["fault"])})


class MissedError(Exception):
    """The job ended before the fault could strike."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self.attempt = attempt


SIGNALS = {name: signal.Signals[name] for name in ("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT")}


def struck_by_signal(site: Site, fault: Fault) -> Outcome:
    """One of SIGNALS, to a rank or to the launcher."""
    attempt, since = begin(site, fault)
    name = fault.kind.partition(" ")[0]
    processes = attempt.ranks()
    if fault.victim != LAUNCHER and fault.victim not in processes:
        raise MissedError(attempt)
    clear(attempt.process if fault.victim == LAUNCHER else processes[fault.victim], SIGNALS[name])
    if (name, fault.victim) == ("SIGSTOP", LAUNCHER):
        # Nobody is told of this: the ranks finish, or miss it and end; it then goes on itself.
        until("the ranks' end", lambda: not attempt.ranks(), LONGEST)
        clear(attempt.process, signal.SIGCONT)
    outcome = end(attempt, fault, since)
    if fault.victim == LAUNCHER and name == "SIGKILL":
        expect(outcome, outcome.code == -signal.SIGKILL, f"exit code {outcome.code}")
    elif not outcome.went_on:
        expect(outcome, outcome.code == 1, f"exit code {outcome.code}")
    if name in ("SIGTERM", "SIGINT"):
        expect(outcome, not outcome.went_on or attempt.made >= NEARLY_DONE, "the signal was ignored")
    # Until Python runs our first line a signal just kills; and horovodrun kills its ranks 5 s after it has told them.
    heard = STEPPING if fault.victim == LAUNCHER else set(AFTER) - {"starting"}
    if name in ("SIGTERM", "SIGINT") and fault.moment in heard and not outcome.went_on:
        expect(outcome, "Exit code: 75" in attempt.output(), "no rank exited with 75")
        expect(outcome, outcome.repeated == 0, "steps were lost although there was time to save")
        expect(outcome, outcome.seconds < PREEMPTED, f"the end took {outcome.seconds:.0f} s")
    if fault.victim != LAUNCHER and name in ("SIGKILL", "SIGSTOP") and not outcome.went_on:
        # Of a rank that has ended horovodrun tells, and then ends the others, which may be too busy to tell of it too.
        launchers = name == "SIGKILL" and f"Process {fault.victim} exit with status code 137" in attempt.output()
        named = "error: rank" in attempt.output() or (launchers and fault.moment not in STEPPING)
        expect(outcome, named, "no line names a rank and what it waited for")
    return outcome


def out_of_memory(site: Site, fault: Fault) -> Outcome:
    """A rank gets no more memory from here on: it raises, or a library ends it."""
    attempt, since = begin(site, fault)
    victim = attempt.ranks().get(fault.victim)
    try:
        assert victim is not None
        victim.rlimit(psutil.RLIMIT_AS, (victim.memory_info().vms, -1))
    except (AssertionError, psutil.NoSuchProcess):
        raise MissedError(attempt) from None
    outcome = end(attempt, fault, since, may_raise=fault.victim)
    if not outcome.went_on:
        expect(outcome, outcome.code == 1, f"exit code {outcome.code}")
        named = ("error: rank", f"Process {fault.victim} exit with status code")
        expect(outcome, any(line in attempt.output() for line in named), "no line names a rank")
    return outcome


def disk_full(site: Site, fault: Fault) -> Outcome:
    """Nothing more can be written."""
    filler = site.disk / "filler"
    attempt, since = begin(site, fault)
    try:
        with filler.open("wb") as file:
            subprocess.run(["dd", "if=/dev/zero", "bs=64k"], stdout=file, stderr=subprocess.DEVNULL, check=False)
        outcome = end(attempt, fault, since)
    finally:
        filler.unlink()
    if not outcome.went_on:
        expect(outcome, outcome.code == 1, f"exit code {outcome.code}")
        expect(outcome, "No space left on device" in attempt.output(), "no line says why")
    return outcome


def disk_read_only(site: Site, fault: Fault) -> Outcome:
    """The run folder can't be written when the job starts."""
    site.remount("ro")
    try:
        return refused(site, fault, "Read-only file system")
    finally:
        site.kill()  # a disk in use can't be remounted
        site.remount("rw")


def data_changed(site: Site, fault: Fault) -> Outcome:
    """Between two parts of a run one pixel of the data becomes another."""
    begun(site, fault)
    before = site.data.read_bytes()
    with np.load(site.data) as file:
        arrays = dict(file)
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(site.data, **arrays)
    try:
        return refused(site, fault, "holds a run on other images")
    finally:
        site.data.write_bytes(before)


def checkpoint_cut(site: Site, fault: Fault) -> Outcome:
    """The newest checkpoint ends at a random byte."""
    return damaged(site, fault, lambda data, place: data[:place])


def checkpoint_flipped(site: Site, fault: Fault) -> Outcome:
    """One random bit of the newest checkpoint is another."""
    return damaged(site, fault, lambda data, place: data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :])


def all_checkpoints_cut(site: Site, fault: Fault) -> Outcome:
    """No checkpoint can be read: the job must not begin anew as if there were none."""
    begun(site, fault)
    before = {path: path.read_bytes() for path in site.checkpoints()}
    for path, data in before.items():
        path.write_bytes(data[:-1])
    try:
        return refused(site, fault, "no checkpoint in")
    finally:
        for path, data in before.items():
            path.write_bytes(data)


def damaged(site: Site, fault: Fault, change: Callable[[bytes, int], bytes]) -> Outcome:
    """The job goes on from the checkpoint before the newest, and says so."""
    begun(site, fault)
    if len(site.checkpoints()) == 1:
        return all_checkpoints_cut(site, fault)
    newest, made = site.checkpoints()[-1], site.saved()
    data = newest.read_bytes()
    newest.write_bytes(change(data, random.Random(fault.seed).randrange(len(data))))
    repeated = made - site.saved()
    attempt, since = site.start(fault.ranks), time.monotonic()
    outcome = end(attempt, fault, since)
    outcome.repeated = repeated
    outcome.said = next((line for line in attempt.output().splitlines() if "is damaged" in line), "")
    expect(outcome, outcome.code == 0, f"exit code {outcome.code}")
    expect(outcome, bool(outcome.said), "the damage was not reported")
    return outcome


def begun(site: Site, fault: Fault) -> None:
    """Have a run with checkpoints, by one that is told to stop where there is none."""
    if not site.checkpoints():
        first = begin(site, Fault(kind="none", ranks=fault.ranks, moment="mid-epoch", seed=fault.seed))[0]
        clear(first.ranks()[0], signal.SIGTERM)
        first.wait(ENDED)


def port_taken(site: Site, fault: Fault) -> Outcome:
    """The launcher without ssh finds its port in use (`horovodrun` draws a free one)."""
    with Pods(site.folder, 1) as pods, socket.create_server(("127.0.0.1", pods.port)):
        since = time.monotonic()
        pods.start(0, site.command, "--ranks-per-pod", str(fault.ranks), "--port", str(pods.port))
        code = pods.code(0, ENDED)
        outcome = Outcome(fault=fault, seconds=time.monotonic() - since, code=code, said=pods.log(0).splitlines()[-1])
    expect(outcome, code == 1 and "already in use" in outcome.said, f"exit code {code}: {outcome.said}")
    return outcome


def network_cut(site: Site, fault: Fault) -> Outcome:
    """Two hosts (network namespaces) lose sight of each other for 20 seconds; the launcher forms the world again.

    It begins a run of its own, so that there is enough left to do.
    """
    limits = [f"{name}={value}" for name, value in {"HOROVOD_GLOO_TIMEOUT_SECONDS": "10"}.items()]
    options = ["--heartbeat-timeout", "5", "--start-timeout", "60", "--grace", "10", "--rejoin"]
    for log in site.folder.glob("pod-*.log"):
        log.unlink()
    with Network(2) as network, Pods(site.folder, 2, network, options) as pods:
        pods.start_all(["env", *limits, f"XDG_CACHE_HOME={site.folder / 'cache'}", *site.command])
        until("a checkpoint", site.checkpoints, LONGEST)
        time.sleep(random.Random(fault.seed).uniform(0, 2))
        old, made, since = pods.ranks(), site.newest(), time.monotonic()
        network.cut(1)
        until("the old ranks' end", lambda: not any(p.is_running() and p.status() != "zombie" for p in old), ENDED)
        ended = time.monotonic() - since
        time.sleep(max(0.0, 20 - ended))
        network.mend(1)
        codes = pods.codes(LONGEST)
        outcome = Outcome(fault=fault, went_on=True, seconds=time.monotonic() - since, code=max(codes))
        said = [line for line in pods.log(1).splitlines() if "nothing heard" in line]
        outcome.said = f"old ranks ended after {ended:.0f} s; " + (said[0] if said else "")
        worlds = [line for line in pods.log(0).splitlines() if "training in" in line]
        logs = pods.log(0) + pods.log(1)
    begun = max(steps("".join(worlds[-1:]), "going on after"), default=0)
    outcome.repeated = max([made, *steps(logs, "waited for|for")]) - begun
    expect(outcome, begun >= made, f"{made} steps were saved, and the new world began after {begun}")
    expect(outcome, codes == [0, 0], f"exit codes {codes}")
    expect(outcome, len(worlds) > 1 and bool(said), "the ranks did not meet again")
    expect(outcome, site.finished(), "the run was not finished")
    return outcome


def refused(site: Site, fault: Fault, line: str) -> Outcome:
    """Start a job that must be refused with this line and exit code 2."""
    attempt, since = site.start(fault.ranks), time.monotonic()
    outcome = end(attempt, fault, since)
    expect(outcome, "Exit code: 2" in attempt.output() and outcome.code == 1, f"exit code {outcome.code}")
    expect(outcome, line in outcome.said, "no line says why")
    return outcome


def begin(site: Site, fault: Fault) -> tuple[Attempt, float]:
    """Start the job and wait for the fault's moment: the attempt, and the time. Raises MissedError."""
    site.forget_cache()
    attempt = site.start(fault.ranks)
    if not attempt.moment(fault.moment):
        raise MissedError(attempt)
    time.sleep(random.Random(fault.seed).uniform(0, AFTER[fault.moment]))
    if attempt.process.poll() is not None:
        raise MissedError(attempt)
    attempt.made = site.newest()
    return attempt, time.monotonic()


def end(attempt: Attempt, fault: Fault, since: float, *, may_raise: int = LAUNCHER) -> Outcome:
    """Wait for the end of all processes, and look at what is left; a rank that must raise may print a traceback."""
    code = attempt.wait(LONGEST)
    outcome = Outcome(fault=fault, seconds=time.monotonic() - since, code=code)
    outcome.went_on = attempt.site.finished() and code == 0
    lines = [line for line in attempt.output().splitlines() if line.startswith("[")]
    said = [line.partition(">:")[2] for line in lines if "error: " in line or "goes on from there" in line]
    outcome.said = said[0] if said else ""
    if not outcome.went_on:
        saved = attempt.site.saved()
        expect(outcome, saved >= attempt.made, f"{attempt.made} steps were on the disk, and {saved} are")
        outcome.repeated = max(0, max(attempt.steps_made(), attempt.made) - saved)
        expect(outcome, outcome.seconds < ENDED, f"the end took {outcome.seconds:.0f} s")
        # The suite's runs save every half second, and at each epoch's end; nobody can on a full disk.
        saves = fault.kind != "disk full"
        expect(outcome, not saves or outcome.repeated <= STEPS, f"{outcome.repeated} steps were lost")
    raised = [line for line in lines if "Traceback" in line and not line.startswith(f"[{may_raise}]")]
    expect(outcome, not raised, "a rank printed a traceback")
    expect(outcome, not attempt.began_elsewhere(), attempt.began_elsewhere())
    return outcome


def expect(outcome: Outcome, right: bool, wrong: str) -> None:
    """Note what is wrong, if something is."""
    if not right:
        outcome.wrong = "; ".join(filter(None, [outcome.wrong, wrong]))


ANEW = {"network cut"}
"""Kinds of fault that need a run of their own."""
KINDS: dict[str, tuple[Callable[[Site, Fault], Outcome], int]] = {
    **{f"{name} rank": (struck_by_signal, 6) for name in SIGNALS},
    **{f"{name} launcher": (struck_by_signal, 3) for name in SIGNALS},
    "out of memory rank": (out_of_memory, 3),
    "disk full": (disk_full, 3),
    "disk read-only": (disk_read_only, 2),
    "checkpoint cut": (checkpoint_cut, 2),
    "checkpoint flipped": (checkpoint_flipped, 2),
    "all checkpoints cut": (all_checkpoints_cut, 0),
    "data changed": (data_changed, 2),
    "port taken": (port_taken, 1),
    "network cut": (network_cut, 2),
}
"""Each kind of fault, what makes it happen, and how often it is drawn at random."""
# After its last exchange nobody waits for a rank any more, and the launcher waits for one that stands still.
UNHEARD = {("SIGSTOP rank", "finishing")}


def draw(count: int, seed: int, site: Site) -> list[Fault]:
    """So many random faults: every kind of them that this machine allows once, then more."""
    generator = random.Random(seed)
    kinds = [kind for kind, (_, often) in KINDS.items() if often and (site.mounted or not kind.startswith("disk"))]
    if Network.why_not():
        kinds.remove("network cut")
    weights = [KINDS[kind][1] for kind in kinds]
    drawn = generator.sample(kinds, len(kinds)) + generator.choices(kinds, weights, k=max(0, count - len(kinds)))
    faults = []
    for kind in drawn[:count]:
        ranks = 2 if kind == "network cut" else generator.randint(2, 4)
        victim = generator.randrange(ranks) if kind.endswith("rank") else LAUNCHER
        during = KINDS[kind][0] in (struck_by_signal, out_of_memory)
        moments = [m for m in AFTER if (kind, m) not in UNHEARD] if during else ["first step", *STEPPING]
        moment = generator.choice(moments) if during or kind == "disk full" else ""
        faults.append(Fault(kind=kind, ranks=ranks, victim=victim, moment=moment, seed=generator.randrange(2**31)))
    return faults


def left_out(drawn: list[Fault]) -> list[Fault]:
    """What chance has left out: each signal at each moment, where one writes the one that does, and rare kinds."""
    struck = {(fault.kind, fault.moment) for fault in drawn if fault.moment != WRITING or fault.victim <= 0}
    signals = [kind for kind, (strikes, _) in KINDS.items() if strikes is struck_by_signal]
    pairs = [(kind, moment) for kind in signals for moment in AFTER if (kind, moment) not in struck | UNHEARD]
    pairs += [(kind, "") for kind, (_, often) in KINDS.items() if not often]
    return [
        Fault(kind=kind, ranks=2, victim=0 if kind.endswith("rank") else LAUNCHER, moment=moment)
        for kind, moment in pairs
    ]


def strike(site: Site, fault: Fault) -> Outcome:
    """Let a fault happen. Raises MissedError where the job was done before, AssertionError where something hangs."""
    return KINDS[fault.kind][0](site, fault)
