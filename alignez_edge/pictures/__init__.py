"""Pictures of profiles and of evaluations."""
