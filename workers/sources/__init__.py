"""From configuration sections to a model and to samples."""
