"""From hidden states to an intervention: one method a file, all of them in `table.py`."""
