"""How a run ends: the chosen weights, the one look at the test set, and what is left in the folder."""

import resource
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from horovod_keras import Collectives
from job.config import Config
from job.data.arrays import CLASS_NAMES, UInt8
from job.errors import RunError
from job.model import kernels
from job.model.mobilenet import evaluation_batch
from job.model.training import TrainingModel
from job.run import state, world
from job.run.checkpoints import Position, put_in_place
from job.run.context import Context
from job.run.epochs import Data, share
from job.run.folder import RunFolder
from job.run.scores import score

Probabilities = npt.NDArray[np.floating]

# Between the fast network and the stock one: rounding of 28 layers, far below what could change an answer's meaning.
TOLERANCE = 1e-3
PARTS = 10
"""Of a pass over images: between them ranks look whether they are to stop, and each has a time limit of its own."""


def finish(
    context: Context, model: TrainingModel, data: Data, position: Position, folder: RunFolder | None
) -> dict[str, Any]:
    """Choose the weights, evaluate them, save the model and the report.

    Args:
        position: after the last epoch.
        folder: of the run; None on ranks other than 0.

    Returns:
        The result; rank 0's is what `result.json` holds, and times, memory and halvings are each rank's own.

    Raises:
        PreemptedError: on all ranks; one was told to stop before rank 0 began to save.
        RunError: on rank 0; the network that it would save isn't the one that was trained.
    """

    config, ranks, timings = context.config, context.ranks, context.timings

    def between() -> None:
        context.watchdog.expect("the test", world.SETUP_TIMEOUT)
        world.stop_if_told(ranks, context.stop, "after the last epoch")

    with timings.of("evaluation"):
        between()
        model.at_resolution(config.resolution)
        as_selected = choose_weights(config, ranks, model, folder)
        between()
        # What is judged is the network that is saved. The training model answers the same, sooner, in float32.
        kernels.multiply_in_float32()
        # FASHION_KERNELS may have asked for products in bfloat16 all the same.
        narrow = keras.config.dtype_policy().compute_dtype != keras.config.floatx() or kernels.in_bfloat16()
        judged = model.serving_model() if narrow else model
        images, labels, chosen = data.set.images, data.set.labels, data.splits.validation
        validation = score(labels[chosen], probabilities(judged, images[chosen], config.resolution, ranks, between))
        test_images, test_labels = images[data.splits.test], labels[data.splits.test]
        predicted = probabilities(judged, test_images, config.resolution, ranks, between)
        mirrored = probabilities(judged, test_images[:, :, ::-1], config.resolution, ranks, between)
        test = score(test_labels, predicted)
    with timings.of("saving"):
        if folder:
            save_model(model, folder, test_images[:8], predicted[:8])
    # The protocol of 2017 reports what it chose by: the best epoch on mirrored test images.
    reported = position.best_accuracy if config.protocol == "original" else validation.accuracy
    result = {
        "status": "done",
        "val_accuracy": reported if as_selected else validation.accuracy,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_accuracy_with_flips": score(test_labels, (predicted + mirrored) / 2).accuracy,
        "epochs": config.epochs,
        "best_epoch": position.best_epoch if as_selected else None,
        "ranks": ranks.size,
        "seconds": round(timings.elapsed(), 3),
        "protocol": config.protocol,
        "data": data.set.source,
        "weights": config.weights,
        "seconds_to_first_step": timings.to_first_step and round(timings.to_first_step, 3),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "halvings": folder.halvings() if folder else [],
        "timings": {name: round(seconds, 3) for name, seconds in timings.seconds.items()},
    }
    if folder:
        folder.checkpoints.wait()
        # Here, because plots take most of a second to import and the first step should not wait for that.
        from job.run.report import write_report

        write_report(
            folder.path,
            result=result,
            images=test_images,
            places=data.set.places(data.splits.test),
            labels=test_labels,
            probabilities=predicted,
            class_names=CLASS_NAMES,
            split_name="test",
        )
        # The last of all: who finds it finds the whole run.
        folder.write_json("result.json", result)
    return result


def choose_weights(config: Config, ranks: Collectives, model: TrainingModel, folder: RunFolder | None) -> bool:
    """Give all ranks the weights that the recipe selects: those of the best epoch, or those that they have.

    Returns:
        False if the best are lost, and the last ones have to do.
    """
    as_selected = True
    if config.select == "best":
        best = world.in_touch(ranks, lambda: folder and folder.checkpoints.wait() and folder.checkpoints.best())
        if best:
            state.restore(model, best[0])
        elif folder:
            as_selected = False
            world.say(ranks, "the weights of the best epoch are lost or damaged: the last ones become the model")
    # Also the last ones: of a run that is resumed after its last epoch they are on rank 0 alone.
    for index, variable in enumerate(model.variables):
        variable.assign(ranks.broadcast(variable.value, f"chosen/{index}"))
    return bool(world.broadcast(ranks, as_selected))


def probabilities(
    model: keras.Model, images: UInt8, resolution: int, ranks: Collectives, between: Callable[[], None]
) -> Probabilities:
    """Class probabilities, float32 [n, 10], of images uint8 [n, 28, 28], each rank computing its share of them.

    Args:
        between: called on all ranks after each of `PARTS` parts of it.
    """
    batch = evaluation_batch(resolution)
    result = np.zeros((len(images), len(CLASS_NAMES)), np.float32)
    for part in np.array_split(np.arange(*share(len(images), ranks)), PARTS):
        if len(part):
            result[part] = model.predict(images[part], batch_size=batch, verbose=0)
        between()
    return ranks.sum(result, "probabilities").numpy()


def save_model(model: TrainingModel, folder: RunFolder, images: UInt8, expected: Probabilities) -> None:
    """Save the stock network with the model's weights, once it has been seen to answer as the trained one does.

    Raises:
        RunError: it doesn't.
    """
    serving: keras.Model = model.serving_model()
    difference = float(np.abs(serving.predict(images, verbose=0) - expected).max())
    if not difference <= TOLERANCE:  # nor may it be NaN
        raise RunError(
            f"the network to save differs from the trained one: received {difference:.2g} in probability, at most "
            f"{TOLERANCE:g} is rounding. Try FASHION_KERNELS=off with the same command, which then ends the run."
        )
    partial = folder.path / ".partial.keras"
    try:
        serving.save(partial)
        put_in_place(partial, folder.path / "model.keras")
    finally:
        partial.unlink(missing_ok=True)
