"""How a Ray cluster has to be set for hedgerow: the same for sessions of our own and for every manifest."""

from __future__ import annotations

RAY_ENVIRONMENT = {
    "RAY_task_oom_retries": "1",  # the default is to retry for ever
    "RAY_grpc_client_keepalive_time_ms": "10000",  # a partition is noticed in seconds, not minutes
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "2000",  # five in turn, two seconds apart: a frozen node is given up within 20 s
    "RAY_health_check_failure_threshold": "5",
}
"""For every process of a cluster, the driver's too: Ray reads them once, when a process starts."""

HEAD_PORT = 6379
"""Where a head listens for its nodes and drivers; Ray's own port."""
DASHBOARD_PORT = 8265
"""Where a head serves its dashboard, and with it the job server; Ray's own port."""
JOB_SERVER = f"http://127.0.0.1:{DASHBOARD_PORT}"
"""Where a cluster's job server is asked for unless somebody says otherwise."""
STOP_WAIT = 60
"""Seconds in which a stopped command may save the state of its steps; Ray's own patience is 3."""
SUBMITTED = "HEDGEROW_SUBMITTED"
"""The variable that a command finds set when it runs as a submitted job."""
