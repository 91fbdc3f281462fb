"""The recipes: what a run computes, as frozen dataclasses with a name each.

python -m job.train --recipe fast --print-config    # shows one; each of its values is an option too
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from job.errors import InputError

CHECKED = ConfigDict(extra="forbid", use_attribute_docstrings=True)
Resolution = Annotated[int, Field(ge=32, le=2048)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Recipe:
    """What is computed: network input, optimisation, regularisation, augmentation."""

    resolution: Resolution = 56
    """Input side in pixels; images are resized to it bilinearly, inside the model."""
    stages: tuple[tuple[Fraction, Resolution], ...] = ()
    """Progressive resizing: pairs of (share of the epochs, resolution) that come first, as [[0.4,32],[0.3,48]]."""
    epochs: Annotated[int, Field(ge=1, lt=100_000)] = 50
    """Passes over the training split, all stages together."""
    global_batch: Annotated[int, Field(ge=1, lt=2**31)] = 100
    """Images per update, over all ranks; recipe original without flips takes 64."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Update rule; adamw decays the convolutions' and the head's weights, never the normalisation's."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    """Peak learning rate, per update of the global batch."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls from its peak to 0, which the update after the last would have."""
    warmup: Fraction = 0.0
    """Share of all updates in which the learning rate rises linearly from 0."""
    beta_2: Annotated[float, Field(gt=0, lt=1 - 2**-25)] = 0.999
    """Adam's decay of the second moment, per update; what float32 would round to 1 is refused."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Decoupled decay (adamw only), times the learning rate, per update."""
    dropout: Fraction = 0.5
    """Share of pooled features that is zeroed in training."""
    label_smoothing: Fraction = 0.0
    """Probability mass that is spread evenly over all classes."""
    batch_norm_momentum: Fraction = 0.99
    """Share of the old value in each update of the moving statistics."""
    input_range: Literal["0..1", "-1..1"] = "0..1"
    """Range that pixel values are scaled to; the ImageNet weights were trained on -1..1."""
    flip: bool = True
    """Mirror each training image with probability one half."""
    shift: Annotated[int, Field(ge=0, le=8)] = 0
    """Move each training image by up to so many pixels (of 28) either way."""
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a rectangle of a training image is filled with noise (random erasing)."""
    clean: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the epochs, the last ones, without shifts and erasing: as the images that the model is judged on."""
    weights: str = "imagenet"
    """Initial weights: imagenet (downloaded), none, or the path of a Keras MobileNet weights file."""
    select: Literal["best", "last"] = "best"
    """Which weights become the model: those of the best epoch on the validation split, or the last."""

    def __post_init__(self) -> None:
        if sum(share for share, _ in self.stages) > 1:
            raise InputError(
                f"stages take more than all epochs: received {self.stages}. Their shares must sum to 1 or less."
            )
        if self.resolutions()[-1] != self.resolution:
            raise InputError(
                f"stages leave no epoch of {self.epochs} at the resolution {self.resolution}, which the model is made "
                f"for: received {self.stages}. Lower their shares, or take more epochs."
            )
        if self.weight_decay and self.optimizer != "adamw":
            raise InputError(f"weight_decay {self.weight_decay} needs optimizer adamw: received {self.optimizer}.")

    def resolutions(self) -> list[int]:
        """The resolution of each epoch."""
        result, share = [self.resolution] * self.epochs, 0.0
        for part, resolution in self.stages:
            first, last = round(share * self.epochs), round((share + part) * self.epochs)
            result[first:last] = [resolution] * (last - first)
            share += part
        return result


FAST = Recipe(
    resolution=48,
    stages=((0.2, 32),),
    epochs=5,
    global_batch=128,
    optimizer="adamw",
    learning_rate=0.002,
    schedule="linear",
    warmup=0.15,
    beta_2=0.99,
    weight_decay=0.05,
    dropout=0.2,
    label_smoothing=0.1,
    batch_norm_momentum=0.9,
    input_range="-1..1",
    select="last",
)

RECIPES: dict[str, Recipe] = {
    "original": Recipe(),  # the experiment of 2017, in today's Keras: docs/results.md
    "fast": FAST,
    "best": replace(FAST, resolution=56, stages=((0.2, 32), (0.25, 48)), epochs=40, shift=2, erase=0.5, clean=0.1),
}
