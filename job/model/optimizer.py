"""Adam and AdamW as Keras defines them; on a CPU with our kernels the whole update is one operation.

Both keep Keras' slots, names and configuration: what one saves the other loads.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from job.model import kernels


class _OneOperation:
    """Replaces the two steps of Keras' `apply` that touch every variable; the rest of it stays as it is."""

    def _fits(self: Any, variables: Sequence[Any]) -> bool:
        plain = not self.amsgrad and not tf.distribute.has_strategy()
        return plain and kernels.load() is not None and all(v.dtype == "float32" for v in variables)

    def _apply_weight_decay(self: Any, variables: Sequence[Any]) -> None:
        if not self._fits(variables):
            super()._apply_weight_decay(variables)  # type: ignore[misc]

    def _backend_update_step(
        self: Any, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        operations = kernels.load()
        if operations is None or not self._fits(trainable_variables):
            super()._backend_update_step(grads, trainable_variables, learning_rate)  # type: ignore[misc]
            return
        places = [self._get_variable_index(variable) for variable in trainable_variables]
        operations.fashion_adam(
            variables=[variable.value.handle for variable in trainable_variables],
            momentums=[self._momentums[place].value.handle for place in places],
            velocities=[self._velocities[place].value.handle for place in places],
            gradients=[tf.convert_to_tensor(gradient) for gradient in grads],
            step=tf.cast(self.iterations + 1, tf.int64),
            learning_rate=tf.cast(learning_rate, tf.float32),
            weight_decay=tf.cast(self.weight_decay or 0.0, tf.float32),
            decayed=[self.weight_decay is not None and self._use_weight_decay(v) for v in trainable_variables],
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            # 1 - 0.999 in float32 would be off by one part in 80,000.
            one_minus_beta_1=1 - self.beta_1,
            one_minus_beta_2=1 - self.beta_2,
            epsilon=self.epsilon,
        )


class Adam(_OneOperation, keras.optimizers.Adam):
    """`keras.optimizers.Adam`."""


class AdamW(_OneOperation, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`."""
