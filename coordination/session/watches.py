"""The callbacks for changes of nodes: watches that fire once, and subscriptions to every event under a node."""

from __future__ import annotations

from collections.abc import Callable

#: Called once, on the loop, when what was read may have changed or the connection dropped: read again.
Watch = Callable[[], object]

#: Called on the loop with the kind of an event (`requests.CREATED` …) and the path of its node.
OnEvent = Callable[[int, str], object]


class Watches:
    """The watches and subscriptions of one session.

    ZooKeeper keeps one watch a path and session, which goes with its next event; removing ours leaves that one.

    Attributes:
        by_path: the watches that have not fired.
    """

    def __init__(self) -> None:
        self.by_path: dict[str, set[Watch]] = {}
        self._subscribers: list[tuple[str, OnEvent]] = []

    def add(self, path: str, watch: Watch) -> None:
        """Have `watch` called at the next event of `path`, which must be read with ``watch=True``."""
        self.by_path.setdefault(path, set()).add(watch)

    def remove(self, path: str, watch: Watch) -> None:
        """Forget a watch that has not fired. Idempotent."""
        if (watches := self.by_path.get(path)) is not None:
            watches.discard(watch)
            if not watches:
                del self.by_path[path]

    def subscribe(self, root: str, on_event: OnEvent) -> Callable[[], None]:
        """Have `on_event` called with every event on a node at or under `root`; return what ends that.

        The events are those of `requests.add_watch`, which has to be sent after every CONNECTED.
        """
        subscriber = (root, on_event)
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return unsubscribe

    def fire(self, path: str) -> None:
        """Call the watches of one node."""
        for watch in self.by_path.pop(path, set()):
            watch()

    def fire_all(self) -> None:
        """Call all watches."""
        for path in list(self.by_path):
            self.fire(path)

    def dispatch(self, kind: int, path: str) -> None:
        """Pass an event on to watches and subscribers."""
        self.fire(path)
        for root, on_event in list(self._subscribers):
            if path == root or path.startswith(root + "/"):
                on_event(kind, path)
