"""Side by side with peers: `python -m benchmarks`, or `make bench`.

Each measure of `measures.py` runs the contestants of one comparison in one session, interleaved
round by round on the same machine, and gives medians and a ratio. `results.json` has all figures,
`docs/performance.md` the table made of it.
"""
