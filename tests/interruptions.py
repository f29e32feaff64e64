"""Ending a run in the middle, from inside its process."""

from ntkpipe.pipeline.executors.serial import SerialExecutor


class Killed(BaseException):
    """Ends a driver as abruptly as an in-process test can."""


def interrupt_after(monkeypatch, num_tasks):
    """Let the serial executor finish some tasks, then end the driver before the next commit."""
    finished = []
    wait = SerialExecutor.wait

    def counting(self, timeout_seconds):
        outcomes = wait(self, timeout_seconds)
        finished.extend(outcomes)
        if len(finished) > num_tasks:
            raise Killed
        return outcomes

    monkeypatch.setattr(SerialExecutor, "wait", counting)
