"""What a launcher tells a rank, and what Horovod reads when it starts. Imports nothing heavy."""

import os
from collections.abc import MutableMapping

# A value that the user has set wins. A stall becomes an error on all ranks instead of a warning every minute (off by
# default: https://github.com/horovod/horovod/issues/1994 and others). Fusion is off because `optimizer.py` puts small
# gradients together itself: what Horovod fuses depends on timing, and with it the order of sums over 3 and more ranks.
# For the same reason there is no autotuning unless asked for (`horovodrun --autotune`).
#
# All ranks are to end within 60 s. Horovod looks at what waits only every CHECK seconds, at what it has in its cache
# (every exchange but the first of its name) for CHECK seconds more before it takes it for waiting at all: so the end
# comes SHUTDOWN to SHUTDOWN + 3 CHECK seconds after the stall, 40 to 55. CHECK alone only warns. (Horovod 0.28.1 as
# published finds no stall at all under Gloo; docker/build_horovod.py mends that.)
DEFAULTS = {
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "5",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "40",
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "45",
}
# Horovod does not tune what it finds set; and 0.28.1 ends with a segmentation fault
# (ParameterManager::BayesianParameter::SetValue) when a process that found one of them set meets the others a second
# time, as elastic ranks do, and processes that are ranks of one job after another.
TUNABLE_DEFAULTS = {"HOROVOD_FUSION_THRESHOLD": "0", "HOROVOD_CYCLE_TIME": "1"}

MANY_WORLDS = "HOROVOD_KERAS_MANY_WORLDS"
"""Set to 1 by who starts a process that is to be a rank of one world after another."""

# Each launcher (horovodrun, mpirun, Slurm's PMI, ours) tells a rank its number in one of these.
RANK_VARIABLES = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def launched_rank() -> int | None:
    """This process's rank as its launcher gave it, before any other is met; None for a single process."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), None)


def is_elastic() -> bool:
    """Whether the launcher of this process forms a new world when ranks come or go."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def set_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Fill in what the user has not set; must happen before Horovod starts."""
    tuned = environment.get("HOROVOD_AUTOTUNE", "0") not in ("", "0")
    meets_again = is_elastic() or environment.get(MANY_WORLDS) == "1"
    check = environment.get("HOROVOD_STALL_CHECK_TIME_SECONDS", "")
    if check.isdigit() and int(check) > int(DEFAULTS["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"]):
        environment.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", check)  # Horovod takes a shorter one for none
    for variable, value in (DEFAULTS if tuned or meets_again else DEFAULTS | TUNABLE_DEFAULTS).items():
        environment.setdefault(variable, value)
    if meets_again:
        for variable in TUNABLE_DEFAULTS:
            environment.pop(variable, None)
