"""The command line: `hedgerow` and what its commands do."""
