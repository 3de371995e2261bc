"""What a command costs before it does anything: the interpreter alone, the help, a table of the catalog."""

import subprocess
import sys
from pathlib import Path

from harness import Action, Case, Form

CROSSEARTH = str(Path(sys.executable).with_name("crossearth"))


def command(*words: str) -> Action:
    return lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


CASES = {
    "commands": Case(
        {
            "python -c pass": Form(lambda: command(sys.executable, "-c", "pass")),
            "crossearth --help": Form(lambda: command(CROSSEARTH, "--help")),
            "crossearth settings": Form(lambda: command(CROSSEARTH, "settings")),
        },
        rounds=9,
    )
}
