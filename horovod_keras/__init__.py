"""Horovod for Keras 3.

Horovod's own Keras layer (``horovod.keras``, ``horovod.tensorflow.keras``) fails on Keras 3: ``'Variable' object has no
attribute 'ref'`` (https://github.com/horovod/horovod/issues/4290). This package uses Horovod's low-level tensor
operations alone, and runs without Horovod as a single process:

    ranks = horovod_keras.join()
    optimizer = horovod_keras.distribute(keras.optimizers.Adam(1e-3), ranks)
    model.compile(optimizer, loss, metrics, jit_compile=False)
    model.fit(..., callbacks=[BroadcastInitialState(ranks), BatchNormStatistics(ranks), MetricAverage(ranks), ...])

Start it with ``horovodrun -np 4 python script.py``, or with ``python -m horovod_keras.launch`` where there is no ssh.

A rank for which others have waited for 40 s ends them all (``HOROVOD_STALL_SHUTDOWN_TIME_SECONDS``; 0: never): let none
work longer than that alone, as in a ``ModelCheckpoint`` or an evaluation on rank 0.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from horovod_keras.collectives import Collectives, join
    from horovod_keras.optimizer import distribute

__all__ = ["Collectives", "distribute", "join"]


def __getattr__(name: str) -> Any:
    # The launcher lives in this package too and must start without importing TensorFlow.
    if name in ("Collectives", "join"):
        from horovod_keras import collectives

        return getattr(collectives, name)
    if name == "distribute":
        from horovod_keras.optimizer import distribute

        return distribute
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
