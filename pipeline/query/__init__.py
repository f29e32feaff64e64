"""Asking a run, wherever it is: one class, :class:`~ntkpipe.pipeline.query.run.Run`, over a reader of storage or of a service."""
