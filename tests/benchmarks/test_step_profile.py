"""What the profile of a step counts."""

from benchmarks.step import exact_flop
from benchmarks.step_profile import BATCH, RESOLUTION, flop
from job.model.mobilenet import BLOCKS


def test_the_operations_of_the_layers_are_together_those_of_a_step() -> None:
    kinds = {"conv_dw": "FashionDepthwise", "conv_pw": "FashionPointwise"}
    together = sum(
        flop(f"{layer}_{number}", kind + way)
        for layer, kind in kinds.items()
        for number in range(1, len(BLOCKS) + 1)
        for way in ("", "Gradient")
    )
    first_convolution = 6 * 28 * 28 * 27 * 32
    assert together == BATCH * (exact_flop(RESOLUTION) - first_convolution)
    assert flop("conv_pw_1_bn", "FashionNormalise") == flop("", "FashionAdam") == 0
