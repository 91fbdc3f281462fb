"""Adam and AdamW as Keras defines them."""

import keras


class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam`."""


class AdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`."""
