"""What the shell offers when Tab is pressed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import appliance

ROOT = Path(appliance.__file__).parents[1]


def offered(folder: Path, line: str) -> set[str]:
    """The words for the end of a command line that is typed in the current folder; `folder` takes argcomplete's answer."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "out"),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    code = "import sys; sys.argv[0] = 'coral-reef'; from appliance.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    return set((folder / "out").read_text().split("\n"))
