"""From hidden states to an intervention: one method a file."""
