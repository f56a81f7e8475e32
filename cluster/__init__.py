"""Where work runs and what it leaves behind: session, step engine, store, ledger, tracking. Knows no task by name."""
