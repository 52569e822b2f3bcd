"""From hidden states to an intervention."""
