"""The bundled demo model: weights, world, queries and rule judge."""
