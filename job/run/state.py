"""What training changes, as arrays that a checkpoint can hold."""

import numpy as np

from job.errors import InputError
from job.model.training import TrainingModel
from job.run.checkpoints import Tensors


def everything(model: TrainingModel) -> dict[str, np.ndarray]:
    """A copy of all that training changes but the metrics: weights, moving statistics, optimizer slots and counters."""
    return weights(model) | {f"optimizer {i:04d}": np.array(v) for i, v in enumerate(model.optimizer.variables)}


def weights(model: TrainingModel) -> dict[str, np.ndarray]:
    """A copy of the weights and moving statistics."""
    return {f"model {i:04d}": np.array(v) for i, v in enumerate(model.variables)}


def running_metrics(model: TrainingModel) -> dict[str, np.ndarray]:
    """A copy of the running metrics of the epoch."""
    return {f"metric {m.name}/{v.name}": np.array(v) for m in model.metrics for v in m.variables}


def restore(model: TrainingModel, arrays: Tensors) -> None:
    """Set what `everything` or `weights` copied. Raises InputError if the arrays belong to another model."""
    for kind, variables in (("model", model.variables), ("optimizer", model.optimizer.variables)):
        values = [value for name, value in sorted(arrays.items()) if name.startswith(f"{kind} ")]
        if kind == "optimizer" and not values:
            continue
        if [v.shape for v in values] != [tuple(v.shape) for v in variables]:
            raise InputError(
                f"the checkpoint is of another model: its {kind} variables have other shapes, as of another version of "
                "this code. Go on with that version, or choose another folder with --run."
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
