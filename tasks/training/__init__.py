"""Training: the task, its hot loop, and what makes both exact after an interruption."""
