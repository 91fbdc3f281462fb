"""The pages' blocks of code: each is one, and the README's example of a model of one's own runs as it is printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_horovod_for_a_model_of_one_s_own(launch, tmp_path: Path) -> None:
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
                  if "horovod_keras.join()" in code]  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text(example.replace('"model.keras"', repr(str(tmp_path / "model.keras"))))
    done = launch(2, script)
    assert done.returncode == 0, done.stderr
    assert "Epoch 2/2" in done.stdout and (tmp_path / "model.keras").exists()


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_block_of_code_is_closed_before_the_next_begins(page: str) -> None:
    fences = re.findall(r"^ *```(.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0 and not any(fences[1::2])
