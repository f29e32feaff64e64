"""The explorer in a real browser, against a real service."""
