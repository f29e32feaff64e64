"""Nodes of a described cluster, over time: what room there is for workers, who comes, who is lost."""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from ntkpipe.configs.described import Cluster, Group
from ntkpipe.pipeline.simulation.chance import Chance, Draws

HOUR: Final = 3600.0


@dataclass(slots=True, eq=False)
class Node:
    """A machine."""

    number: int
    group: Group
    since: float
    factor: float
    """How many times longer it computes than its device's figures say."""
    lost_at: float
    """When it will be gone; infinite for one that stays."""
    is_taking: bool = True
    """Whether workers may be started on it."""
    is_there: bool = True


@final
class Machines:
    """All nodes of a cluster, and the room on them.

    Args:
        cluster: With the nodes that are there at the beginning.
        chance: What becomes of them.
        draws: Random numbers.
    """

    def __init__(self, cluster: Cluster, chance: Chance, draws: Draws) -> None:
        self.groups = {group.name: group for group in cluster.groups}
        self._chance = chance
        self._draws = draws
        self._numbers = itertools.count()
        self._room: dict[str, deque[Node]] = {name: deque() for name in self.groups}
        self._there: dict[int, Node] = {}
        self.num_lost = 0
        self._node_seconds: dict[str, float] = dict.fromkeys(self.groups, 0.0)

    def begin(self) -> list[Node]:
        """Let the first nodes come."""
        found = [self._made(group, 0.0) for group in self.groups.values() for _ in range(group.nodes)]
        for name, group in self.groups.items():
            # Workers are spread: each node gets its first one before any gets its second.
            self._room[name].extend(
                node for _ in range(group.workers_per_node) for node in found if node.group is group
            )
        return found

    def join(self, name: str, now: float) -> Node:
        """Let a node come."""
        node = self._made(self.groups[name], now)
        self._room[name].extend([node] * node.group.workers_per_node)
        return node

    def take(self, name: str) -> Node | None:
        """Take the room for a worker; None if there is none in the group."""
        room = self._room[name]
        while room:
            node = room.popleft()
            if node.is_taking:
                return node
        return None

    def give_back(self, node: Node) -> None:
        """Let others have the room of a worker that has ended."""
        if node.is_taking:
            self._room[node.group.name].append(node)

    def lose(self, node: Node, now: float) -> None:
        """A node is gone."""
        node.is_there = node.is_taking = False
        self.num_lost += 1
        self._node_seconds[node.group.name] += now - node.since
        del self._there[node.number]

    def node_seconds(self, now: float) -> dict[str, float]:
        """Return for how long nodes were there, by group."""
        found = dict(self._node_seconds)
        for node in self._there.values():
            found[node.group.name] += now - node.since
        return found

    def price(self, now: float) -> float:
        """Return what the nodes have cost."""
        seconds = self.node_seconds(now)
        return sum(seconds[name] / HOUR * group.price_per_hour for name, group in self.groups.items())

    def worker_seconds(self, now: float) -> float:
        """Return for how long there was room for workers, summed over it."""
        seconds = self.node_seconds(now)
        return sum(seconds[name] * group.workers_per_node for name, group in self.groups.items())

    def __iter__(self) -> Iterator[Node]:
        return iter(self._there.values())

    def _made(self, group: Group, now: float) -> Node:
        hours = group.hours_between_failures
        fails = self._chance.failures and hours is not None
        factor = self._draws.node_factor()
        lost_at = now + self._draws.lifetime(hours * HOUR) if fails and hours is not None else float("inf")
        node = Node(next(self._numbers), group, now, factor, lost_at)
        self._there[node.number] = node
        return node
