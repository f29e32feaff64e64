"""What needs a schedule: plans, the driver, executors, queries and the command line."""
