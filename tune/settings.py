"""What a search is: its own options, and the training job's options that hold for every trial."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from job.command_line import read_flags, refused
from job.config import ASKED_ONCE, options, plain, read_yaml, resolve
from job.errors import InputError
from job.recipes import CHECKED
from tune.space import DEFAULT, Space

PROGRAM = "python -m tune.sweep"
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Settings:
    """How the search is made."""

    trials: Count = 16
    """Settings to try; of a population, its size. A grid tries all of its points."""
    epochs: Count = 10
    """Passes over the training split that a trial may use; with --budget seconds as many as there is time for."""
    budget: Literal["epochs", "seconds"] = "epochs"
    """What trials have in equal measure and are stopped early by."""
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    """Time of a trial with --budget seconds, the building of its model included; its last whole epoch is judged."""
    ranks_per_trial: Count = 1
    """Horovod ranks that train a trial together."""
    cpus_per_rank: Count = 1
    """Cores, and threads, of a rank."""
    gpus_per_rank: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a rank; default 1 where the cluster has some, else 0."""
    memory_per_rank: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """GiB of memory of a rank; default an estimate for the largest resolution and batch."""
    placement: Literal["pack", "spread"] = "pack"
    """Ranks of a trial on as few nodes as possible, or on as many."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are chosen: Optuna's TPE learns from finished trials."""
    grid_points: Count = 3
    """Values of each range in a grid."""
    scheduler: Literal["asha", "none", "pbt"] = "asha"
    """asha stops hopeless trials early; pbt copies good trials' weights and changes their settings on the way."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """asha: one trial in so many goes on at each rung."""
    perturb_every: Count | None = None
    """pbt: epochs or seconds, as the budget has them, between changes; default a fifth of the budget."""
    space: Path | None = None
    """YAML file of parameters in place of the default space (resolution, dropout, learning_rate)."""
    vary: tuple[str, ...] = ()
    """NAME=LOW..HIGH, NAME="LOW..HIGH log", NAME="LOW..HIGH step N" or NAME=A,B; may be repeated."""
    confirm: Annotated[int, Field(ge=0)] = 0
    """Train the best so many again with --seeds seeds each, and let the means decide."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """Seeds of each confirmed setting."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 2017
    """Of the search and of each trial."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Times that a trial is restarted from its last checkpoint after a failure of a process or a machine."""
    measure: bool = True
    """Measure some steps first, to check the options and to say how long the search will take."""
    out: Path = Path("runs/search")
    """Folder of the results; the same command with the same folder goes on."""
    resume: Path | None = None
    """Folder of a search to go on with; its options come from there."""
    address: str | None = None
    """Ray cluster: auto, or HOST:PORT of its head; default (local) this machine's own, which ends with the search."""
    storage: str | None = None
    """Where trials keep their checkpoints: a path or a URI that pyarrow reads, shared by all nodes; default --out."""


# Options of the job that a search gives its trials itself, or that would let them see the test set.
_OWN = frozenset(f.name for f in dataclasses.fields(Settings)) & options().keys()
_NOT_FOR_TRIALS = {"run", "protocol", "threads"} | ASKED_ONCE
# What trials are compared by.
_NOT_SEARCHED = {"dataset", "data_dir", "limit_train", "limit_eval"}
# Of a recipe, what is measured in shares of all epochs.
_SHARES = ("schedule", "warmup", "stages", "clean")
# Epochs of a trial that ends by the clock: more than it gets to.
_NO_LIMIT = 10_000
CHANGEABLE = {"address", "measure", "max_failures"}
"""Options that may be others when a search goes on."""
# Those that are not kept: what others stand for.
_ELSEWHERE = {"out", "resume", "vary", "space"}


@dataclasses.dataclass(frozen=True)
class Search:
    """A search: settings, space, and the options of every trial."""

    settings: Settings
    space: Space

    def count(self) -> int:
        """How many trials it has."""
        if self.settings.search == "grid":
            return len(self.space.grid_points(self.settings.grid_points))
        return self.settings.trials

    def identity(self) -> dict[str, Any]:
        """What `sweep.yaml` holds; all but `CHANGEABLE` must be the same when the search goes on."""
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self.settings).items()
            if name not in _ELSEWHERE
        }
        return settings | {"space": self.space.texts(), "job": self.space.fixed}


def parse(argv: Sequence[str]) -> Search:
    """The search that a command line asks for. Raises InputError."""
    own: Mapping[str, Any] = Settings.__pydantic_fields__  # type: ignore[attr-defined]
    job = {name: field for name, field in options().items() if name not in _NOT_FOR_TRIALS | own.keys()}
    description = "Search for the best settings of the training job. Options of the job hold for every trial."
    flags = read_flags(argv, PROGRAM, description, {**own, **job})
    if "resume" in flags:
        return _resumed(Path(flags["resume"]), {name: flags[name] for name in flags.keys() - {"resume"}})
    return _search(flags)


def _search(flags: Mapping[str, Any]) -> Search:
    own = Settings.__pydantic_fields__  # type: ignore[attr-defined]
    if flags.get("storage") == "":
        raise InputError("--storage needs a path or a URI: received ''. Name one, or leave it out.")
    if "://" not in flags.get("storage", "://"):  # a path that holds in any folder
        flags = {**flags, "storage": str(Path(flags["storage"]).absolute())}
    # The command line's reader takes what looks like JSON for it, within a list of values too.
    flags = {**flags, "vary": [str(part) for part in flags.get("vary", ())]}
    if flags.get("budget") == "seconds":
        flags = {"epochs": _NO_LIMIT, **flags}
    elif "seconds" in flags:
        raise InputError(f"--seconds is a budget: received {flags['seconds']} without --budget seconds. Add it.")
    if flags.get("scheduler") == "pbt":
        if flags.get("search", "random") == "tpe":
            raise InputError(
                "a population changes settings itself: received --search tpe with --scheduler pbt. Leave it out."
            )
        flags = {"search": "random", **flags}
    settings = _checked({name: value for name, value in flags.items() if name in own})
    given = {name: value for name, value in flags.items() if name not in own}
    if settings.scheduler == "pbt":
        given = _for_a_population(settings, given)
    fixed = given | {"epochs": settings.epochs, "seed": settings.seed}
    values = plain(resolve([fixed]))
    named = fixed.keys() | ({"data_dir"} if values["data_dir"] else set())  # it may come from the environment
    fixed = {name: values[name] for name in values if name in named}
    texts: dict[str, Any] = {n: t for n, t in DEFAULT.items() if n not in given}
    if settings.space:
        texts = read_yaml(settings.space)
    texts |= _varied(settings.vary)
    for name in texts.keys() & (_NOT_FOR_TRIALS | _NOT_SEARCHED | _OWN):
        raise InputError(f"{name} can't be searched: it decides what trials are compared by. Remove it from the space.")
    for name in texts.keys() & given.keys():
        raise InputError(f"{name} is both fixed ({given[name]}) and varied ({texts[name]}). Give one of them.")
    space = Space(texts, fixed)
    if settings.budget == "seconds":
        _refuse_shares(space)
    return Search(settings, space)


def _checked(values: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        raise refused(error, PROGRAM) from None


def _for_a_population(settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """The job's options of a population: the best weights of a trial's past may be a donor's, of other settings."""
    if settings.trials < 2:
        raise InputError(f"a population needs 2 or more trials: received --trials {settings.trials}.")
    if given.get("select", "last") != "last":
        raise InputError(
            f"a population is judged by its last weights: received --select {given['select']} with --scheduler pbt. "
            "Leave it out."
        )
    return {**given, "select": "last"}


def _refuse_shares(space: Space) -> None:
    """By the clock nobody knows the last epoch, so no choice in the space may hold shares of all epochs."""
    names = [name for name in ("recipe", *_SHARES) if name in space.parameters]
    for values in itertools.product(*(space.parameters[name].grid(2) for name in names)):
        try:
            config = plain(space.config(dict(zip(names, values, strict=True))))
        except InputError:  # as the trial will find
            continue
        for name in _SHARES:
            if config[name] not in ("constant", 0, []):
                raise InputError(
                    f"--budget seconds has no known last epoch, of which {name} is a share: received {name} "
                    f"{config[name]}. Use --schedule constant --warmup 0 --stages=[] --clean 0, or --budget epochs."
                )


def _varied(parts: Sequence[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for part in parts:
        name, equals, values = part.partition("=")
        name = name.strip().replace("-", "_")
        if equals:
            texts[name] = values
        elif texts:
            # The command line's reader splits lists at commas, those within a list of values too.
            texts[next(reversed(texts))] += f",{part}"
        else:
            raise InputError(f"--vary takes NAME=VALUES: received {part!r}.")
    return texts


def _resumed(folder: Path, flags: Mapping[str, Any]) -> Search:
    if not (folder / "sweep.yaml").is_file():
        raise InputError(f"no search there: received --resume {folder}, in which there is no sweep.yaml.")
    kept = read_yaml(folder / "sweep.yaml")
    space, job = kept.pop("space", None), kept.pop("job", None)
    if not isinstance(space, dict) or not isinstance(job, dict):
        raise InputError(f"{folder / 'sweep.yaml'} is not a search's: it lacks `space` or `job`. Restore it.")
    if other := flags.keys() - CHANGEABLE:
        raise InputError(f"a search goes on with its own options: received --{min(other)} with --resume. Remove it.")
    return Search(_checked({**kept, **flags, "out": folder}), Space(space, job))
