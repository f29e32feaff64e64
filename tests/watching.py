"""Watching a run: a progress that keeps what it is told."""


class Notes:
    """Keeps what a run says."""

    def __init__(self):
        self.texts = []
        self.ready = []

    def stage(self, name, done, total):
        pass

    def task(self, name, num_bytes):
        pass

    def attempt_failed(self, name):
        pass

    def workers(self, ready, wanted):
        self.ready.append(ready)

    def note(self, text):
        self.texts.append(text)
