"""A process that has imported the libraries and becomes one command after another by forking.

Importing torch and Lightning is most of what a command of a few rounds takes. The project itself is imported anew by
every command, from the folder it is typed in, and a command has a process of its own as it has in a shell.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

LIMIT_S = 300  # a command that hangs is killed


class WarmPython:
    """Runs scripts of a folder; as a context manager, it is gone when the block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        """As subprocess.run([sys.executable, *words]) with its output captured."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        out, err = self.folder / "typed.out", self.folder / "typed.err"
        self.process.stdin.write(json.dumps([words, str(out), str(err)]) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    def __enter__(self) -> WarmPython:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.communicate()


def become(words: list[str], out: str, err: str) -> None:
    """What `python script.py ...` does, with output into two files."""
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv[:] = words
    sys.path[0] = str(Path.cwd())
    runpy.run_path(words[0], run_name="__main__")


def serve() -> None:
    """A line of JSON in, the command's exit code out."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm(LIMIT_S)
            become(*json.loads(line))
            sys.exit()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    for library in ("lightning.pytorch.cli", "torch.utils.tensorboard", "torchmetrics"):
        importlib.import_module(library)
    assert "lightning_sfl" not in sys.modules
    serve()
