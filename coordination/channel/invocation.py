"""One call as its caller made it: the arguments of every attempt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from coordination.deadline import Deadline

#: The metadata that asks for providers of one tag, as in Dubbo.
TAG_KEY = "dubbo.tag"


@dataclass(frozen=True, slots=True)
class Method:
    """A method as a stub describes it. `kind` is the name of the Channel method that makes its callable."""

    kind: str
    name: str
    request_serializer: Callable[[Any], bytes] | None
    response_deserializer: Callable[[bytes], Any] | None
    bare_name: str = field(init=False)  # without the service's

    def __post_init__(self) -> None:
        object.__setattr__(self, "bare_name", self.name.rpartition("/")[2])


@dataclass(slots=True)
class Invocation:
    """One call.

    Attributes:
        request: a message, or the iterator of a request stream.
        deadline: of all attempts together.
        key: what the call is about, for the picker.
        governed: whether the caller or a rule has set the deadline; if not, it is the channel's default.
    """

    method: Method
    request: Any
    deadline: Deadline
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None
    key: str = ""
    governed: bool = True
    began_s: float = field(default_factory=time.monotonic)

    @property
    def tag(self) -> str:
        """The tag of the providers asked for; empty for any."""
        for key, value in self.metadata or ():
            if key == TAG_KEY and isinstance(value, str):
                return value
        return ""

    def govern(self, timeout_s: float | None) -> None:
        """Limit the whole call to `timeout_s` seconds from its beginning; None: no limit.

        The limit replaces the channel's default, and shortens the caller's deadline.
        """
        if timeout_s is None:
            return
        limit = Deadline(self.began_s + timeout_s)
        self.deadline = Deadline(min(self.deadline.at, limit.at)) if self.governed else limit
        self.governed = True
