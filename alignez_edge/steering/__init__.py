"""From the interventions of profiles to what is injected into one model."""
