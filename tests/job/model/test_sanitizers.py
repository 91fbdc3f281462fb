"""The inner kernels touch nothing that isn't theirs and do nothing undefined; their variants agree."""

import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from job.model.kernels.library import BFLOAT16_FLAGS, INNER_FLAGS, SOURCES, variants

DRIVER = Path(__file__).with_name("kernels_driver.cc")
SANITIZERS = {
    "address and undefined behaviour": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-fsanitize=thread"],
}


def _needs(variant: str) -> set[str]:
    avx512 = {"avx512f", "avx512vl", "avx512dq", "avx512bw"}
    dot = avx512 | {"avx512_bf16"}
    amx = dot | {"amx_tile", "amx_bf16"}
    return {"avx512": avx512, "avx2": {"avx2", "fma"}, "amx": amx, "avx512bf16": dot}.get(variant, set())


def _results(folder: Path, flags: list[str]) -> dict[str, float]:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    here = set(Path("/proc/cpuinfo").read_text().split())
    results = {}
    for variant, variant_flags in (variants() | BFLOAT16_FLAGS).items():
        if not _needs(variant) <= here:
            continue
        binary = folder / variant
        settings = [
            *INNER_FLAGS,
            "-O1",
            "-g",
            "-std=c++17",
            "-pthread",
            f"-DVARIANT={variant}",
            f"-I{SOURCES / 'inner'}",
        ]
        sources = [str(DRIVER), str(SOURCES / "inner" / "variant.cc")]
        command = [compiler, *settings, *variant_flags, *flags, *sources, "-o", str(binary)]
        subprocess.run(command, check=True, capture_output=True)
        # Without a fixed layout of memory: gcc 12's thread sanitizer does not know that of newer kernels.
        done = subprocess.run(
            ["setarch", platform.machine(), "-R", str(binary)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
        results[variant] = float(done.stdout)
    return results


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels_are_clean_under_sanitizers_and_variants_agree(tmp_path: Path, sanitizer: str) -> None:
    results = _results(tmp_path, SANITIZERS[sanitizer])
    assert "plain" in results
    for variant in BFLOAT16_FLAGS.keys() & results.keys():  # they round factors to 8 bits
        assert results.pop(variant) == pytest.approx(results["plain"], rel=1e-2)
    assert max(results.values()) == pytest.approx(min(results.values()), rel=1e-4)
