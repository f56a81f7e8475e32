"""What one worker does: data, models, training, pruning, attacks, measuring. Pure PyTorch, no cluster."""
