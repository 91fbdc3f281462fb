"""The configuration of a run: what it computes (:class:`job.recipes.Recipe`), and where and how (:class:`Config`).

Both are frozen dataclasses, checked when they are made. The command line is made from them; a value comes from the
recipe, is overruled by the configuration file, and that by a flag:

    python -m job.train --recipe fast --epochs 3
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from job import reading
from job.command_line import read_flags, refused
from job.errors import InputError
from job.reading import shortened
from job.recipes import CHECKED, RECIPES, Recipe


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Config(Recipe):
    """A recipe and the circumstances of one run of it."""

    recipe: Literal["original", "fast", "best"] = "original"
    """Named set of defaults for everything above."""
    dataset: Literal["fashion-mnist", "garments"] = "fashion-mnist"
    """The real data, or ten kinds of garment drawn by this project's own code (needs no files)."""
    data_dir: Path | None = None
    """Folder of the IDX or the Kaggle CSV files, or an .npz; default $FASHION_MNIST_DIR, the cache, a download."""
    run: Path | None = None
    """Folder for all that the run leaves; the same command with the same folder goes on. Default under runs/."""
    config: Path | None = None
    """YAML file of options; flags win over it."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 2017
    """Of weights, order, augmentation and dropout."""
    deterministic: bool = False
    """Two runs with the same seed and number of ranks end bit-identical."""
    protocol: Literal["honest", "original"] = "honest"
    """original repeats 2017: trains on all 60,000 and chooses the best epoch on the (flipped) test images."""
    limit_train: Annotated[int, Field(ge=10, lt=2**31)] | None = None
    """Use so many training images only, for tries."""
    limit_eval: Annotated[int, Field(ge=10, lt=2**31)] | None = None
    """Use so many validation and test images only, for tries."""
    accumulate: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Batches per update: each rank adds up their gradients before it exchanges them."""
    compression: Literal["none", "fp16"] = "none"
    """fp16 halves the bytes of the gradient exchange between hosts; within one, up to 8 ranks are slower with it."""
    sync_batch_norm: bool = False
    """Normalise by the statistics of the global batch, so that the number of ranks makes no difference."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Of activations and products (our bfloat16 kernels: of products); weights stay float32. float64: for checks."""
    xla: bool = False
    """Compile the step of a single process with XLA: for a GPU; on CPUs it is slower."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Threads of this rank; default its share of the cores that the process may use."""
    checkpoint_every: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    """Seconds between checkpoints within an epoch."""
    step_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    """Seconds for a step after which a rank gives up, so that no run hangs (an epoch's first has 900 or more)."""
    on_nan: Literal["stop", "half-rate"] = "stop"
    """When the loss or a gradient is not finite: end, or go back to the last checkpoint at half the rate, 5 times."""
    profile: bool = False
    """Write a TensorBoard profile of steps 10 to 15 of rank 0 into the run folder."""
    timeline: Path | None = None
    """File for Horovod's timeline of all exchanges (Chrome's trace format), which rank 0 writes."""
    print_config: bool = False
    """Print the resolved configuration as YAML and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol == "original" and self.select != "best":
            raise InputError(
                f"protocol original chooses the best epoch: received select {self.select}. Add --select best."
            )

    def identity(self) -> dict[str, Any]:
        """All that decides what the run computes, as plain values: what a resumed run must agree on."""
        return {name: value for name, value in plain(self).items() if name not in CIRCUMSTANCES}

    def folder(self) -> Path:
        """The run folder: as given, or one under ``runs/`` named after the recipe and the run's identity."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        return self.run or Path("runs") / f"{self.recipe}-{self.dataset}-{digest[:8]}"


CIRCUMSTANCES = frozenset(["data_dir", "run", "threads", "checkpoint_every", "step_timeout", "on_nan"])
"""Options that may differ between the parts of one interrupted and resumed run, beside those that are not kept."""
# What a command line asks for once: not kept in a run's configuration, and not taken from a file.
ASKED_ONCE = frozenset(["config", "print_config", "profile", "timeline"])
DIGEST = "data"
"""What `config.yaml` holds beside the options: the digest of the images that the run was trained on."""


def plain(config: Recipe) -> dict[str, Any]:
    """The configuration as values that YAML and JSON can hold, and that `--config` takes."""
    return {
        name: str(value) if isinstance(value, Path) else [list(v) for v in value] if name == "stages" else value
        for name, value in dataclasses.asdict(config).items()
        if name not in ASKED_ONCE
    }


def as_yaml(config: Config) -> str:
    """The configuration as a file that `--config` takes."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def resolve(overrides: Sequence[Mapping[str, Any]]) -> Config:
    """A configuration from layers of options, the later ones winning, over the recipe that they name.

    Raises:
        InputError: an unknown option, or a value of the wrong type or out of range.
    """
    given: dict[str, Any] = {}
    for layer in overrides:
        given |= layer
    recipe = given.get("recipe", "original")
    defaults = dataclasses.asdict(RECIPES[recipe]) if isinstance(recipe, str) and recipe in RECIPES else {}
    if recipe == "original" and given.get("flip") is False:
        defaults["global_batch"] = 64  # as the experiment of 2017 did
    if usual := usual_data_dir():
        defaults["data_dir"] = usual
    for name in ("data_dir", "run", "config"):
        if given.get(name) == "" or "\0" in str(given.get(name)):
            received = shortened(given[name])
            raise InputError(f"option {name} is no path: received {received}. Name one, or leave the option out.")
    for name in given.keys() & options().keys():
        # To Python `yes` and `true` in a YAML file are numbers, too.
        if isinstance(given[name], bool) and options()[name].annotation is not bool:
            raise InputError(f"option {name}: can't be yes or no; received {given[name]}.")
    try:
        config = Config(**defaults | given)
    except ValidationError as error:
        raise refused(error, "python -m job.train") from None
    # Absolute, so that the same run is the same from any folder.
    weights = config.weights if config.weights in ("imagenet", "none") else str(Path(config.weights).absolute())
    return dataclasses.replace(config, data_dir=config.data_dir and config.data_dir.absolute(), weights=weights)


def usual_data_dir() -> Path | None:
    """Where the data are if no option says so: what $FASHION_MNIST_DIR names, if anything."""
    named = os.environ.get("FASHION_MNIST_DIR")
    return Path(named) if named else None


def parse(argv: Sequence[str], program: str = "python -m job.train") -> Config:
    """The configuration that a command line asks for, its ``--config`` file included. Raises InputError."""
    flags = parse_flags(argv, program)
    layers = [flags]
    if "config" in flags:
        layers.insert(0, read_options(Path(flags["config"])))
    return resolve(layers)


def read_options(path: Path) -> dict[str, Any]:
    """The options in a configuration file, which may be a run's own `config.yaml`. Raises InputError."""
    # What a run's own file has as null was left out, and may have another default here.
    known = {name: value for name, value in read_yaml(path).items() if value is not None}
    return {name: value for name, value in known.items() if name not in ASKED_ONCE | {DIGEST}}


def parse_flags(argv: Sequence[str], program: str) -> dict[str, Any]:
    """The options that the command line names, unchecked; ``--help`` prints and exits. Raises InputError."""
    return read_flags(argv, program, "Train MobileNet with Horovod.", options())


@functools.cache
def options() -> Mapping[str, FieldInfo]:
    """Every option of a run by name, with its type, default and description."""
    documented: dict[str, FieldInfo] = Recipe.__pydantic_fields__ | Config.__pydantic_fields__  # type: ignore[attr-defined]
    for name, field in Recipe.__pydantic_fields__.items():  # type: ignore[attr-defined]
        documented[name].description = field.description
    return documented


def read_yaml(path: Path) -> dict[str, Any]:
    """The `option: value` lines of a YAML file. Raises InputError when it can't be read or isn't a mapping."""
    try:
        values = reading.yaml_file(path)
    except OSError as error:
        raise InputError(f"file {path} can't be read: {error.strerror}. Name a YAML file of options.") from None
    except ValueError as error:
        raise InputError(f"file {path} is no YAML: {error}. Write `option: value` lines.") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"configuration file {path} must hold `option: value` lines: received {shortened(values)}.")
    return {name.replace("-", "_"): value for name, value in values.items()}
