"""What happens between the steps of a run: its checkpoints, and the reasons to end early."""

import contextlib
import math
import time
from dataclasses import replace
from typing import Any, NoReturn

import keras
import numpy as np

from horovod_keras.elastic import HostsChangedError
from horovod_keras.environment import is_elastic
from horovod_keras.optimizer import Exchange
from job.errors import DivergedError, HalvedError, PreemptedError
from job.run import state
from job.run.checkpoints import Position, Tensors
from job.run.context import Context
from job.run.folder import RunFolder
from job.run.journal import Journal
from job.run.world import IN_TOUCH, in_touch

MOST_HALVINGS = 5
WRITING_TIMEOUT = 900.0  # seconds, for a checkpoint to be on the disk
LISTENING_TIMEOUT = 3600.0  # seconds, for an epoch to be taken note of by a search, which may be suspended
FIRST_STEP_TIMEOUT = 900.0  # seconds, for the first batch of an epoch: TensorFlow may have to trace and compile


class Keeper(keras.callbacks.Callback):
    """Checkpoints within and after epochs; ends all ranks together when one is told to stop or the loss is lost.

    Args:
        context: of the run.
        folder: of the run; None on ranks other than 0.
        position: where the run starts; the attribute of the same name is kept up to date.
        metrics: running metrics of the epoch that a resumed run stands in.
        steps: batches of an epoch.
        journal: of rank 0.
    """

    def __init__(
        self,
        context: Context,
        folder: RunFolder | None,
        position: Position,
        metrics: Tensors,
        steps: int,
        journal: Journal | None,
    ) -> None:
        super().__init__()
        self.context, self.config, self.ranks = context, context.config, context.ranks
        self.watchdog, self.timings = context.watchdog, context.timings
        self.folder, self.position, self.resumed_metrics = folder, position, metrics
        self.steps, self.journal = steps, journal
        self._open = contextlib.ExitStack()
        self._saved = time.monotonic()
        self.timings.went_before(position.seconds)
        self._saved_place = position.place
        """Of the last checkpoint."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._tracing = True
        self._open.enter_context(self.timings.of("tracing"))
        if self.context.kept.saved is None:  # a rank may be lost before the first checkpoint
            self._keep(self.resumed_metrics)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Rank 0 goes on with the sums of all ranks; the others start at nothing, so that the total is right.
        if self.ranks.rank == 0:
            for metric in self.model.metrics:
                for variable in metric.variables:
                    variable.assign(self.resumed_metrics.get(f"metric {metric.name}/{variable.name}", variable))
        self.resumed_metrics = {}

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        late = time.monotonic() - self._saved > self.config.checkpoint_every
        due = self.folder is not None and late and self.folder.checkpoints.wait(0)  # one at a time
        requests = [float(self.context.stop.is_set()), float(due), float(self.context.kept.hosts_changed)]
        self.model.optimizer.exchange.requests.assign(requests)
        what = f"step {self.position.step + 1} of epoch {self.position.epoch + 1}"
        self.watchdog.expect(what, self._limit(batch))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        position = self.position = replace(self.position, step=self.position.step + 1)
        if self._tracing:  # the first step, in which ranks wait for whoever traces longest
            self._tracing = False
            self._open.close()
            self.timings.stepped()
            self.model.optimizer.exchange.waited.assign(0.0)
        if position.step % self.config.accumulate:
            return  # between two updates ranks know nothing of each other
        self._stop_if_diverged()
        agreed = self.model.optimizer.exchange.agreed.numpy()
        if position.step == self.steps:  # the end of the epoch saves, and stops, by itself
            return
        if agreed.any():
            # Summed over ranks, so that the epoch's metrics are whole when other ranks go on from here.
            local = state.running_metrics(self.model)
            self._save({name: np.asarray(self.ranks.sum(value, f"save/{name}")) for name, value in local.items()})
        if agreed[Exchange.STOP] > 0:
            self._preempt(f"stopped after step {position.step} of epoch {position.epoch + 1}")
        if agreed[Exchange.MEET] > 0:
            self._meet_others()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.timings.add("all_reduce", float(self.model.optimizer.exchange.waited))
        self._written()

    def _stop_if_diverged(self) -> None:
        """End all ranks after the same step: both numbers are the same on all of them. Nothing was saved since."""
        numbers = {"the loss": self.model.batch_loss, "a gradient": self.model.optimizer.exchange.total}
        what, value = next(((n, float(v)) for n, v in numbers.items() if not math.isfinite(float(v))), (None, 0.0))
        if what is None:
            return
        step, epoch = self.position.step, self.position.epoch + 1
        # Gradients are exchanged, and looked at, once for the batches of an update: any of them may be the one.
        where = f"{what} became {value} between steps {step - self.config.accumulate} and {step} of epoch {epoch}"
        advice = "Lower --learning-rate and give another --run"
        if self.config.on_nan == "stop":
            raise DivergedError(f"{where}. {advice}, or add --on-nan half-rate.")
        if self.model.optimizer._learning_rate.factor <= 0.5**MOST_HALVINGS:
            raise DivergedError(f"{where}, after {MOST_HALVINGS} halvings of the learning rate. {advice}.")
        self._written()
        if self.folder is not None:
            back = list(self._saved_place)
            if any(halving.get("back_to", [-1]) >= back for halving in self.folder.halvings()[-1:]):
                # Half the rate has gone wrong from there too: what was saved was no longer good.
                self.folder.checkpoints.drop_last()
            reason = f"{what} became {value}"
            self.folder.note_halving({"epoch": epoch, "step": step, "reason": reason, "back_to": back})
        self.context.kept.saved = None
        raise HalvedError(f"{where}: back to the last checkpoint with half the learning rate")

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._open.enter_context(self.timings.of("evaluation"))

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._open.close()

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.watchdog.expect("evaluation", self._limit(batch))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        accuracy = (logs or {})["val_accuracy"]
        self.position = replace(self.position, epoch=epoch + 1, step=0)
        # What is chosen must have been judged at the resolution that the model is for.
        final = self.config.resolutions()[epoch] == self.config.resolution
        if better := final and accuracy > self.position.best_accuracy:
            self.position = replace(self.position, best_accuracy=accuracy, best_epoch=epoch + 1)
        self._save({}, best=better)
        stopped = float(self.model.optimizer.exchange.agreed[Exchange.STOP]) > 0
        # Also by who was told since the last step; after the last epoch `finish` looks for itself.
        if epoch + 1 < self.config.epochs:
            stopped |= any(self.ranks.gather(self.context.stop.is_set(), "stop"))
        if self.context.on_epoch:
            self._written()
            # Whoever is told may take long to listen.
            self.watchdog.expect("whoever is told of the epoch", LISTENING_TIMEOUT)
            in_touch(self.ranks, self._tell)
        if stopped:
            self._preempt(f"stopped after epoch {epoch + 1}")
        if float(self.model.optimizer.exchange.agreed[Exchange.MEET]) > 0:
            self._meet_others()

    def _tell(self) -> None:
        if self.context.on_epoch and self.journal is not None:
            self.context.on_epoch(self.journal.record)

    def _meet_others(self) -> NoReturn:
        self._written()  # in the next world another process may be rank 0, and read what is there
        raise HostsChangedError

    def _preempt(self, reason: str) -> NoReturn:
        self._written()  # before anybody leaves: the launcher would give rank 0 some seconds, and kill it
        raise PreemptedError(reason)

    def _written(self) -> None:
        """Wait, on all ranks, until all is on rank 0's disk; in touch, since Horovod takes a silent rank for stalled.

        Raises:
            OSError: on rank 0; the last checkpoint could not be written.
        """
        self.watchdog.expect("the checkpoint", WRITING_TIMEOUT)
        while not all(self.ranks.gather(self.folder is None or self.folder.checkpoints.wait(IN_TOUCH), "written")):
            pass

    def _limit(self, batch: int) -> float:
        return self.config.step_timeout if batch else max(self.config.step_timeout, FIRST_STEP_TIMEOUT)

    def _save(self, metrics: Tensors, *, best: bool = False) -> None:
        with self.timings.of("saving"):
            self._written()
            self._saved, self._saved_place = time.monotonic(), self.position.place
            self.position = replace(self.position, seconds=self.timings.elapsed())
            if self.folder is not None:
                chosen = state.weights(self.model) if best else None
                self.folder.checkpoints.save(state.everything(self.model) | dict(metrics), self.position, chosen)
        self._keep(metrics)

    def _keep(self, metrics: Tensors) -> None:
        """Have this process remember where it stands, if another rank may be lost without the job's end."""
        if is_elastic():
            self.context.kept.values = {"position": self.position, "metrics": metrics}
            self.context.kept.save()
