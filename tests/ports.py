"""Ports of this machine for servers that tests start."""

import random
import socket
from pathlib import Path

LOWEST = 20_000
"""Ports below belong to services that people run, and from 10002 on to the workers of a Ray that was started by `ray start`."""

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(number: int) -> list[int]:
    """Return ports of the loopback interface that nobody uses now.

    A server binds its own seconds later. By then the system may have given a port of its range to any connection of any
    process, so that these are below that range, where there is room: only who asks for one of them by its number gets it.
    """
    below = list(range(LOWEST, int(RANGE.read_text().split()[0]))) if RANGE.exists() else []
    random.SystemRandom().shuffle(below)
    probes: list[socket.socket] = []
    for port in (*below, *[0] * number):
        probe = socket.socket()
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.close()
            continue
        probes.append(probe)
        if len(probes) == number:
            break
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
