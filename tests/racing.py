"""Processes that create the same objects at the same moments."""

import subprocess
import sys

RACE = """
import sys
from ntkpipe.storage.stores.registry import open_store

store, number = open_store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for line in sys.stdin:
    print(int(store.put_new(line.strip(), number.encode() * 1000)), flush=True)
"""


def race_of_processes(url, rounds, racers):
    """Let processes create the same objects at the same moments; return who won, by round."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(url), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(racers)
    ]
    winners = []
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for attempt in range(rounds):
            for process in processes:
                process.stdin.write(f"epoch/{attempt}\n")
            for process in processes:
                process.stdin.flush()
            winners.append([number for number, process in enumerate(processes) if process.stdout.readline() == "1\n"])
    finally:
        for process in processes:
            process.stdin.close()
            process.wait(60)
    return winners
