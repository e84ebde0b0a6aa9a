"""The long form of the fault table: every fault injected for real, many times, and counted.

`make soak` runs all rows and writes benchmarks/soak.json; `python -m benchmarks.soak --only A1`
runs one. The quick forms of the same faults are tests.
"""
