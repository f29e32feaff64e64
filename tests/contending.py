"""Processes that contend for a run, again and again. What they do is here because started processes import it by name."""

import multiprocessing
import os
import time

from ntkpipe.configs.errors import RunLockedError
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.stores.registry import open_store

LEASE_SECONDS = 60.0


def contend(url, rounds, barrier, owners):
    """Try to take the run in every round, at the same moment as the others, and keep it until all have tried."""
    store = open_store(url)
    for number in range(rounds):
        lock = EpochLock(store, LEASE_SECONDS)
        barrier.wait(120)
        try:
            lock.__enter__()
        except RunLockedError:
            barrier.wait(120)
        else:
            owners.put((number, lock.epoch, os.getpid()))
            barrier.wait(120)
            lock.__exit__()
        # Nobody begins the next round before the run is free.
        barrier.wait(120)


def contests(url, rounds, num_drivers=2):
    """Return (round, epoch, process) of everybody who got the run of a URL.

    Args:
        url: Where the run would be; the processes find its store as this one does.
        rounds: How often they try.
        num_drivers: How many processes do.
    """
    context = multiprocessing.get_context("spawn")
    barrier, owners = context.Barrier(num_drivers), context.Queue()
    drivers = [context.Process(target=contend, args=(url, rounds, barrier, owners)) for _ in range(num_drivers)]
    for driver in drivers:
        driver.start()
    found, deadline = [], time.monotonic() + 300
    while any(driver.is_alive() for driver in drivers) or not owners.empty():
        assert time.monotonic() < deadline
        while not owners.empty():
            found.append(owners.get())
        time.sleep(0.02)
    for driver in drivers:
        driver.join()
        assert driver.exitcode == 0
    return sorted(found)
