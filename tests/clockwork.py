"""Workers by the clock: time passes only while somebody listens, and every task takes as long as the test says."""

import heapq
import math
from collections import deque
from itertools import count

from ntkpipe.pipeline.scheduling.workers import AbstractWorkers, Finished, Ready
from ntkpipe.workers.tasks import TaskResult


class Clockwork(AbstractWorkers):
    """Workers that take so many seconds for a task.

    Args:
        seconds: Of a task, given the worker's number, its pool and the task. An error instead is what the
            task ends with, None is a task that never ends.
        starting: Seconds until a worker is ready, given its number and its pool; None for one that never is.
    """

    def __init__(self, seconds, starting=lambda worker, pool: 0.0):
        self.seconds = seconds
        self.starting = starting
        self.time = 0.0
        self.pools = {}
        self.sent = []
        self.ended = []
        self._free_at = {}
        self._events = []
        self._order = count()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def now(self):
        return self.time

    def start(self, pool):
        worker = len(self.pools)
        self.pools[worker] = pool
        delay = self.starting(worker, pool)
        if delay is not None:
            self.at(self.time + delay, Ready(worker, f"host-{worker}:1", pool.device))
        return worker

    def send(self, worker, task, halvings):
        self.sent.append((worker, task, halvings))
        found = self.seconds(worker, self.pools[worker], task)
        if found is None:
            found = math.inf  # nor does anything behind it end
        seconds = 0.0 if isinstance(found, tuple) else found
        self._free_at[worker] = max(self.time, self._free_at.get(worker, 0.0)) + seconds
        answer = found if isinstance(found, tuple) else TaskResult((), (), seconds, f"host-{worker}:1", {})
        self.at(self._free_at[worker], Finished(worker, answer))

    def end(self, worker):
        self.ended.append(worker)
        self._events = [event for event in self._events if getattr(event[2], "worker", None) != worker]
        heapq.heapify(self._events)

    def at(self, time, event):
        """Let something happen at a time."""
        heapq.heappush(self._events, (time, next(self._order), event))

    def listen(self, timeout_seconds):
        if not self._events or self._events[0][0] > self.time + timeout_seconds:
            self.time += timeout_seconds
            return []
        found, self.time = [], max(self.time, self._events[0][0])
        while self._events and self._events[0][0] <= self.time:
            found.append(heapq.heappop(self._events)[2])
        return found


def carry_out(fleet, tasks, *, until=10**6):
    """Do as a driver does, until all tasks have succeeded or the clock has reached a time; returns all outcomes."""
    left, in_flight, outcomes = deque(tasks), 0, []
    while left or in_flight:
        while (worker := fleet.next_worker(len(left))) is not None:
            fleet.submit(worker, left.popleft())
            in_flight += 1
        if fleet.now() >= until:
            break
        for outcome in fleet.wait(1.0):
            in_flight -= 1
            outcomes.append(outcome)
            if outcome.error is not None:
                left.appendleft(outcome.task)
    return outcomes
