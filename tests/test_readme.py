"""The README's example of a model of one's own, as it is printed."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_horovod_for_a_model_of_one_s_own(launch, tmp_path: Path) -> None:
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
                  if "horovod_keras.join()" in code]  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text(example.replace('"model.keras"', repr(str(tmp_path / "model.keras"))))
    done = launch(2, script)
    assert done.returncode == 0, done.stderr
    assert "Epoch 2/2" in done.stdout and (tmp_path / "model.keras").exists()
