"""The scaling benchmark measures what it says, on real ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import cost_model

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quick_run_leaves_a_record_that_the_model_reads_a_picture_and_no_process(tmp_path: Path) -> None:
    record, picture = tmp_path / "scaling.json", tmp_path / "scaling.png"
    command = [sys.executable, "-m", "benchmarks.scaling", "--quick", "--json", str(record), "--picture", str(picture)]
    # Ranks have the path of a socket there on their command line.
    subprocess.run(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, check=True, timeout=280)
    found = json.loads(record.read_text())
    steps = {(row["ranks"], row["batch"], row["exchange"]): row for row in found["steps"]}
    ways = ("as it is", "messages", "none")
    assert steps.keys() == {
        (0, 64, "as it is"),
        (0, 128, "as it is"),
        *((2, batch, way) for batch in (32, 64) for way in ways),
    }
    assert all(row["best_ms"] <= row["median_ms"] and len(row["turns_ms"]) == 2 for row in steps.values())
    # Only ranks that exchange wait for each other.
    waited = {key: row["waited_ms"] for key, row in steps.items()}
    assert waited[2, 32, "as it is"] > 0 == waited[2, 32, "none"] == waited[0, 64, "as it is"]
    assert [row["bytes"] for row in found["messages"]] == [1 << 10, 1 << 18, 1 << 26]
    assert 12e6 < found["gradients"]["bytes"] < 14e6
    assert found["peak_memory_mib"].keys() == {"0", "2"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "model" in cost_model.markdown(found, cost_model.parser().parse_args(["--record", str(record)]))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
