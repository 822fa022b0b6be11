"""The sieve: certain lines of C++ are left out, and all else is on stderr in its order."""

import os
import pty
import subprocess
import sys

WRITER = """
import os, re, sys
from aiornot import sieve

try:
    with sieve.sifted(re.compile(rb"noise")):
        os.write(2, b"noise of C++\\nwords of C++\\nwithout an end")
        print("words of Python", sys.stderr.isatty(), file=sys.stderr)
        raise OSError("as it was")
except OSError as error:
    print(error, file=sys.stderr)
os.write(2, b"noise afterwards\\n")
"""


def test_only_the_lines_named_are_left_out_and_an_error_passes():
    done = subprocess.run([sys.executable, "-c", WRITER], capture_output=True, text=True)
    assert done.returncode == 0
    lines = done.stderr.replace("without an end", "without an end\n").splitlines()
    wanted = ["words of C++", "without an end", "words of Python False", "as it was"]
    assert sorted(lines) == sorted([*wanted, "noise afterwards"])
    assert lines[-2:] == ["as it was", "noise afterwards"]


def test_a_terminal_stays_one_for_python():
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", WRITER], stderr=theirs)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 0 and "words of Python True" in said and "noise of" not in said
