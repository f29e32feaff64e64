"""What the service answers, by subject: one router for each."""
