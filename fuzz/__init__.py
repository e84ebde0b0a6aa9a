"""Fuzzing of what reads files that others may have written: `make fuzz`.

One module a target. A target turns bytes into a file, reads it as the library does, and lets
through whatever is not an `LLMTrainerError`: that is a finding. `python -m fuzz NAME` runs one with
atheris, guided by coverage; the tests replay seeds and fixed noise without it.
"""
