"""Six DVC stages and the commands around them.

Importing the package checks the Python version and the installed packages, because
`python -m pipeline.<stage>` may be started by an interpreter that has none of them, and a
traceback is no answer. The syntax here stays readable to old Pythons for that reason.
"""

import importlib.util
import sys


def _check_environment():  # type: () -> None
    problem = None
    if sys.version_info < (3, 11):
        problem = "Python %d.%d is too old, 3.11 or newer is needed" % sys.version_info[:2]
    else:
        names = ("numpy", "pyarrow", "tokenizers", "torch", "yaml")
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            problem = "%s lacks the packages %s" % (sys.executable, ", ".join(missing))
    if problem:
        sys.stderr.write(
            "error: %s; run `make repro`, or `make setup` and `. .venv/bin/activate`\n" % problem
        )
        raise SystemExit(2)


_check_environment()
