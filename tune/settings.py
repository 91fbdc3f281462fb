"""What a search is: its own options, and the training job's options that hold for every trial."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from job.config import options, plain, read_flags, read_yaml, refused, resolve
from job.errors import InputError
from job.recipes import CHECKED
from job.run.checkpoints import write_atomically
from tune.space import DEFAULT, Space

PROGRAM = "python -m tune.sweep"
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Settings:
    """How the search is made."""

    trials: Count = 16
    """Settings to try; of a population, its size. A grid tries all of its points."""
    epochs: Count = 10
    """Passes over the training split that a trial may use."""
    budget: Literal["epochs", "seconds"] = "epochs"
    """What trials have in equal measure and are stopped early by."""
    seconds: Annotated[float, Field(gt=0)] = 300.0
    """Training time of a trial with --budget seconds; --epochs is then an upper limit."""
    ranks_per_trial: Count = 1
    """Horovod ranks that train a trial together."""
    cpus_per_rank: Count = 1
    """Cores, and threads, of a rank."""
    gpus_per_rank: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a rank; default 1 where the cluster has some, else 0."""
    memory_per_rank: Annotated[float, Field(gt=0)] | None = None
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
    """pbt: epochs between changes; default a fifth of --epochs."""
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
    """Folder of a search to go on with; all of its options come from there."""
    address: str | None = None
    """Ray cluster: auto, or HOST:PORT of its head; default one of this machine alone, which ends with the search."""
    storage: str | None = None
    """Where trials keep their checkpoints: a path or a URI that pyarrow reads, shared by all nodes; default --out."""


# Options of the job that a search gives its trials itself, or that would let them see the test set.
_OWN = frozenset(f.name for f in dataclasses.fields(Settings)) & options().keys()
_NOT_FOR_TRIALS = {"run", "config", "print_config", "protocol", "threads"}
# Options that may be others when a search goes on, and those that its space stands for.
_CHANGEABLE = {"address", "measure", "max_failures"}
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
        """What must be the same when a search goes on."""
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self.settings).items()
            if name not in _CHANGEABLE | _ELSEWHERE
        }
        return settings | {"space": self.space.texts(), "job": self.space.fixed}


def parse(argv: Sequence[str]) -> Search:
    """The search that a command line asks for. Raises InputError."""
    own: Mapping[str, Any] = Settings.__pydantic_fields__  # type: ignore[attr-defined]
    job = {name: field for name, field in options().items() if name not in _NOT_FOR_TRIALS | own.keys()}
    description = "Search for the best settings of the training job. Options of the job hold for every trial."
    flags = read_flags(argv, PROGRAM, description, {**own, **job})
    if "resume" in flags:
        return _resumed(Path(flags["resume"]), {name: flags[name] for name in flags.keys() - {"resume", "out"}})
    return _search(flags)


def _search(flags: Mapping[str, Any]) -> Search:
    own = Settings.__pydantic_fields__  # type: ignore[attr-defined]
    # The command line's reader takes what looks like JSON for it, within a list of values too.
    flags = {**flags, "vary": [str(part) for part in flags.get("vary", ())]}
    try:
        settings = Settings(**{name: value for name, value in flags.items() if name in own})
    except ValidationError as error:
        raise refused(error, PROGRAM) from None
    given = {name: value for name, value in flags.items() if name not in own}
    fixed = given | {"epochs": settings.epochs, "seed": settings.seed}
    config = resolve([fixed])
    values = plain(config)
    fixed = {name: _absolute(name, values[name]) for name in fixed}
    if settings.budget == "seconds" and config.schedule != "constant":
        raise InputError(
            f"a learning rate that falls to 0 needs a known end: received --budget seconds and schedule "
            f"{config.schedule}. Use --schedule constant or --budget epochs."
        )
    if settings.scheduler == "pbt" and settings.trials < 2:
        raise InputError(f"a population needs 2 or more trials: received --trials {settings.trials}.")
    texts: dict[str, Any] = {n: t for n, t in DEFAULT.items() if n not in given}
    if settings.space:
        texts = read_yaml(settings.space)
    texts |= _varied(settings.vary)
    for name in texts.keys() & (_NOT_FOR_TRIALS | _OWN | {"dataset", "data_dir"}):
        raise InputError(f"{name} can't be searched: it decides what trials are compared by. Remove it from the space.")
    for name in texts.keys() & given.keys():
        raise InputError(f"{name} is both fixed ({given[name]}) and varied ({texts[name]}). Give one of them.")
    return Search(settings, Space(texts, fixed))


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


def _absolute(name: str, value: Any) -> Any:
    # Trials don't run in the folder that the search was started in.
    is_path = name == "data_dir" or (name == "weights" and value not in ("imagenet", "none"))
    return str(Path(value).absolute()) if is_path and value is not None else value


def _resumed(folder: Path, flags: Mapping[str, Any]) -> Search:
    if not (folder / "sweep.yaml").is_file():
        raise InputError(f"no search there: received --resume {folder}, in which there is no sweep.yaml.")
    kept = read_yaml(folder / "sweep.yaml")
    space, job = kept.pop("space"), kept.pop("job")
    if other := flags.keys() - _CHANGEABLE:
        raise InputError(f"a search goes on with its own options: received --{min(other)} with --resume. Remove it.")
    job = {name: value for name, value in job.items() if name not in ("epochs", "seed")}
    settings = {**kept, **flags, "out": folder}
    return Search(Settings(**settings), Space(space, job | {"epochs": kept["epochs"], "seed": kept["seed"]}))


def claim(search: Search) -> bool:
    """Make the search's folder, or find the same search there, and write `sweep.yaml`.

    Returns:
        Whether the search has been there before.

    Raises:
        InputError: the folder holds another search, or can't be written.
    """
    folder, identity = search.settings.out, search.identity()
    path = folder / "sweep.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _refuse_another(folder, identity, read_yaml(path))
            return True
        write_atomically(path, yaml.safe_dump(identity, sort_keys=False).encode())
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(f"folder {folder} can't be used: {error.strerror}. Choose another with --out.") from None
    return False


def _refuse_another(folder: Path, identity: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for part in (None, "space", "job"):
        mine, theirs = (identity, known) if part is None else (identity[part], known.get(part, {}))
        for name in [n for n in {**mine, **theirs} if part is not None or n not in ("space", "job")]:
            if mine.get(name) != theirs.get(name):
                raise InputError(
                    f"folder {folder} holds another search: {name} is {theirs.get(name)!r} there, {mine.get(name)!r} "
                    f"now. Choose another with --out, or go on with {PROGRAM} --resume {folder}."
                )
