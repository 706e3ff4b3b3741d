"""A virtual environment of their own for what we are measured against, and programs run in it.

They have dependencies that are not ours, and none of ours: a program that runs there imports
nothing of this project, and is given arrays as ``.npy`` files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Final

from accord.console import say
from accord.files import write_whole
from lab.demo import Failed

HERE: Final = Path(__file__).resolve().parent
REQUIREMENTS: Final = HERE / "flower-requirements.txt"
_PLACE: Final = HERE.parent.parent / ".bench" / "venv"
_INSTALLING: Final = 900.0


def python() -> Path:
    """The interpreter of the environment, which is made first if it is not as pinned.

    Raises:
        Failed: it could not be made; the last lines that pip said are in it.
    """
    stamp = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    mark, found = _PLACE / "stamp", _PLACE / "bin" / "python"
    if mark.exists() and mark.read_text() == stamp:
        return found
    say("Installing Flower and emcee into .bench/venv (once, about a minute) ...")
    shutil.rmtree(_PLACE, ignore_errors=True)
    _PLACE.parent.mkdir(parents=True, exist_ok=True)
    for words in ([sys.executable, "-m", "venv", str(_PLACE)],
                  [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                   "--no-deps", "--requirement", str(REQUIREMENTS)]):
        done = subprocess.run(words, capture_output=True, text=True, timeout=_INSTALLING,
                              check=False)
        if done.returncode:
            raise Failed("could not install what is measured against: "
                         + " ".join(done.stderr.split("\n")[-4:]).strip())
    write_whole(mark, stamp.encode())
    return found


def start(program: str, told: dict[str, Any], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program of this directory there.

    Args:
        program: its file's name.
        told: its only argument, as JSON.
        log: for what it says besides its results, which are lines of JSON on its output.
    """
    surroundings = {
        "PATH": os.environ.get("PATH", ""), "HOME": str(_PLACE), "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
        # Flower would count our runs, and look for its news, far away.
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    # -P: its directory is not where it imports from.
    return subprocess.Popen([str(python()), "-P", str(HERE / program), json.dumps(told)],
                            stdout=subprocess.PIPE, stderr=log, env=surroundings)


def line_of(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """The next line that it says.

    Raises:
        Failed: it ended without one.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        tail = log.read_text(errors="replace").strip().split("\n")[-1]
        raise Failed(f"a program that we are measured against ended: {tail}")
    found = json.loads(line)
    assert isinstance(found, dict)
    return found
