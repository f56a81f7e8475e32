"""A deterministic world for the real engine, watch, worker, ledger and store; clock, threads, disk and Ray are ours.

One seed is one schedule. `python -m tests.cluster.simulation SEED` replays it with its events.
"""
