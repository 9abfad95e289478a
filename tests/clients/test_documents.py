"""Documents for callers that are made from other files."""

import subprocess
import sys

from harness import ROOT


def test_the_page_of_the_api_is_current():
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=True)
