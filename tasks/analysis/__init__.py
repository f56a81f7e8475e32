"""Looking into trained networks."""
