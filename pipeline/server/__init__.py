"""The query service: stored runs over HTTP, and the explorer that asks it."""
