"""What runqueue costs, measured beside what its database costs and what other queues cost.

`python -m benchmarks` in a checkout; docs/performance.md says what the figures mean.
"""
