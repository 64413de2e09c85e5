"""Metrics and health, in two halves.

*What is true* is read from PostgreSQL (and Kafka's group): sums, ages, the slot, the lag, the last recount. Whoever
serves HTTP shows it (``database``). *What a process does* is counted in that process (``states``, ``kafka_roles``,
``observed``): flushes, batches, retries, memory. Labels are bounded: status, cause, partition, never a campaign. So ten
thousand campaigns cost a scrape what ten do.

``endpoint`` serves a role's own half, and its health, on METRICS_LISTEN. docs/operations/metrics.md lists them all.
"""
