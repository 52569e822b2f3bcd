"""From profiles with strengths to what one model is given."""
