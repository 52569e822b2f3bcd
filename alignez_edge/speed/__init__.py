"""How fast the machine is, with and without steering."""
