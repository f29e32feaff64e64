"""Asking a run of a service: a reader over HTTP."""
