"""Metrics and health, in two halves.

*The state of counting* is polled from PostgreSQL (and Kafka's group) by ``poller``, and shown by ``database``: sums,
ages, the slot, the lag, the last recount. *What a process does* is counted in that process (``states``, ``observed``):
flushes, batches, retries, memory. Labels are bounded: status, cause, partition, never a campaign. So ten thousand
campaigns cost a scrape what ten do.

``endpoint`` serves a role's metrics and health on METRICS_LISTEN. docs/operations/metrics.md lists all metrics.
"""
