"""Speed, as ratios of things measured side by side in one run. `python -m benchmarks` runs them all; each has --help.

A figure of the docs comes from one of these commands and nothing else. Where an issue names a bound, the benchmark
checks it and its exit status says so; the machine is shared and noisy, so bounds hold for medians of interleaved runs.
"""
