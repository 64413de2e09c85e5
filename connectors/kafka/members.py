"""Which of two workers with one name started first: each has its start in its client id, which the broker shows."""

from __future__ import annotations

from typing import Final

import kafka.errors

from connectors.kafka.cluster import Cluster

#: begins the client ids of all workers; their start follows
CLIENT_ID: Final = "sentstream-work"


def started_at(cluster: Cluster, group: str, instance: str) -> int | None:
    """When (milliseconds since 1970) the worker started that is the static member ``instance`` now; None where there
    is no such member, or it does not tell."""
    admin = cluster.admin()
    try:
        members = admin.describe_groups([group])[group]["members"]
    except kafka.errors.KafkaError as error:
        raise cluster.refused(error) from error
    finally:
        admin.close()
    mine = [member["client_id"] for member in members if member.get("group_instance_id") == instance]
    start = mine[0].rpartition("-")[2] if mine else ""
    return int(start) if start.isdecimal() else None
