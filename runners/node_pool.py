"""How many nodes of an allocation are free, where trials take different numbers of them."""

from search_spaces.errors import check

MOST_PASSED = 4


class NodePool:
    """Counts nodes; a trial that does not fit is passed over by smaller ones a few times, then waited for.

    Passing keeps nodes busy; an end to it keeps large trials from waiting for ever.
    """

    def __init__(self, n_nodes: int, *, most_passed: int = MOST_PASSED) -> None:
        check(n_nodes >= 1, "a node pool must hold at least one node", n_nodes)
        self.n_nodes, self.n_free = n_nodes, n_nodes
        self._most_passed = most_passed
        self._passed: dict[str, int] = {}

    def take(self, name: str, n_nodes: int) -> bool:
        """Nodes for a trial of that name's kind; false where too few are free, or another is waited for.

        Raises
        ------
        InvalidSpec
            More nodes than there are.
        """
        must = f"a trial of {name} must take from 1 to {self.n_nodes} nodes, the pool's"
        check(1 <= n_nodes <= self.n_nodes, must, n_nodes)
        if n_nodes > self.n_free:
            self._passed.setdefault(name, 0)
            return False
        if any(count >= self._most_passed for other, count in self._passed.items() if other != name):
            return False
        self._passed.pop(name, None)
        self._passed = {other: count + 1 for other, count in self._passed.items()}
        self.n_free -= n_nodes
        return True

    def give_back(self, n_nodes: int) -> None:
        """Nodes of a trial that has ended."""
        self.n_free += n_nodes
        assert self.n_free <= self.n_nodes, "more nodes given back than taken"
