"""How a Ray cluster has to be set for hedgerow: the same for sessions of our own and for every manifest."""

from __future__ import annotations

RAY_ENVIRONMENT = {
    "RAY_task_oom_retries": "1",  # the default is to retry for ever
    "RAY_grpc_client_keepalive_time_ms": "10000",  # a partition is noticed in seconds, not minutes
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
}
"""For every process of a cluster, the driver's too: Ray reads them once, when a process starts."""

JOB_SERVER = "http://127.0.0.1:8265"
"""Where a cluster's job server is asked for unless somebody says otherwise; Ray's own port."""
