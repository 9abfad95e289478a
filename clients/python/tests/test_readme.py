import re
import subprocess
import sys
from pathlib import Path

from programs import PATIENCE, Dev

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_of_the_readme_work(dev: Dev, tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        program = tmp_path / f"example_{number}.py"
        program.write_text(example.replace("127.0.0.1:50051", dev.target))
        done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert "REQUEST_STATE_SUCCEEDED" in done.stdout
