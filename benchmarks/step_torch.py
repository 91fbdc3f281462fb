"""The PyTorch contenders of benchmarks.step: MobileNet v1, forward, backward and fused Adam, on a GPU if there is one.

It needs PyTorch, and of this project nothing but the setting of the C library's allocator.

python benchmarks/step_torch.py CONTENDER --resolution 56 --batch 64 --threads 2 --steps 10
"""

import argparse
import json
import sys
import time

import torch
from torch import nn

from job import allocator

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def mobilenet() -> nn.Module:
    """The network of `keras.applications.MobileNet` with a classifier for ten classes."""

    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01), nn.ReLU6(inplace=True)]

    parts: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), *norm(32)]
    channels = 32
    for filters, stride in BLOCKS:
        if stride == 2:
            parts.append(nn.ZeroPad2d((0, 1, 0, 1)))
        padding = 0 if stride == 2 else 1
        parts += [nn.Conv2d(channels, channels, 3, stride, padding, groups=channels, bias=False), *norm(channels)]
        parts += [nn.Conv2d(channels, filters, 1, bias=False), *norm(filters)]
        channels = filters
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def main() -> None:
    """Make one contender ready, then time one turn for every line on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender")
    for name in ("resolution", "batch", "threads", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    allocator.keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    layout = torch.channels_last if "channels-last" in options.contender else torch.contiguous_format
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = mobilenet().to(device, memory_format=layout).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    run = torch.compile(network) if "compiled" in options.contender else network
    images = torch.randn(options.batch, 3, options.resolution, options.resolution, device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (options.batch,), device=device)

    halved = torch.autocast(device, torch.bfloat16, enabled="bfloat16" in options.contender)

    def step() -> float:
        with halved:
            loss = nn.functional.cross_entropy(run(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(5):
        step()
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(options.steps):
            step()
        print(json.dumps((time.perf_counter() - start) / options.steps), flush=True)


if __name__ == "__main__":
    main()
