"""Bounds the disk that a population takes, without taking a checkpoint that another trial is about to copy.

Tune's own bound (`CheckpointConfig(num_to_keep=...)`) knows nothing of donors: with it, population-based training fails
when a donor has gone on before the trial that copies it gets its turn.
"""

from typing import Any

from pyarrow.fs import FileSelector, FileType
from ray.train import Checkpoint
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining


class Prune(Callback):
    """Deletes a trial's checkpoints but the newest, and those that any trial starts from or is to be copied from.

    Args:
        population: the scheduler, which knows who is to be copied.
        kept: newest checkpoints of each trial.
    """

    def __init__(self, population: PopulationBasedTraining, kept: int) -> None:
        self._population, self._kept = population, kept

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Checkpoint, **info: Any
    ) -> None:
        needed = {one.checkpoint.path for one in trials if one.checkpoint}
        for state in self._population._trial_state.values():
            donor: Any = state.last_checkpoint
            # A future: the donor was told to save, and nobody has asked for the outcome yet.
            if donor is not None and not isinstance(donor, Checkpoint):
                found = donor.resolve(block=False)
                donor = found.checkpoint if found else None
            needed |= {donor.path} if donor else set()
        files: Any = checkpoint.filesystem
        parent = checkpoint.path.rpartition("/")[0]
        own = sorted(
            entry.path
            for entry in files.get_file_info(FileSelector(parent))
            if entry.type == FileType.Directory and entry.base_name.startswith("checkpoint_")
        )
        for path in own[: -self._kept]:
            if path not in needed:
                files.delete_dir(path)
