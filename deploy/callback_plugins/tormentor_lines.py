"""What each machine made of each task, as one line of JSON: for lab/field/plays.py.

A line has ``host``, ``task``, ``outcome`` (ok, failed, unreachable, retry), ``answer`` (the name
that the task registers its result under, or null), ``stdout`` and ``message``. When a task begins,
a line has that as its outcome (begin), and no host.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: tormentor_lines
    type: stdout
    short_description: One line of JSON for each machine and task.
    description: Read by TorMentor's controller.
"""
LONGEST = 40_000
"""Characters; as JSON each can take twelve, and lab/field/plays.py reads a line of up to 2**20."""


class CallbackModule(CallbackBase):
    """Writes the lines."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "tormentor_lines"

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """A task begins, on all machines."""
        self._write({"host": "", "task": task.get_name(), "outcome": "begin"})

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task was done."""
        self._line(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed; one whose failure is meant to be overlooked is done."""
        self._line(result, "ok" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A machine does not answer."""
        self._line(result, "unreachable")

    def v2_runner_retry(self, result: Any) -> None:
        """A task is tried once more: not what was waited for yet."""
        self._line(result, "retry")

    def _line(self, result: Any, outcome: str) -> None:
        told = result.result
        why = [str(told[key]) for key in ("msg", "stderr", "module_stderr", "module_stdout")
               if told.get(key)]
        self._write({
            "host": result.host.get_name(), "task": result.task_name, "outcome": outcome,
            "answer": result.task.register, "stdout": str(told.get("stdout", ""))[:LONGEST],
            "message": "\n".join(why)[-LONGEST:],
        })

    def _write(self, line: dict[str, Any]) -> None:
        try:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever started this is gone, even if by kill -9; nobody else ends it.
            os.killpg(0, signal.SIGKILL)
