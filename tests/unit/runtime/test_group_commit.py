"""Group commit: what becomes of the items of concurrent callers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.kernel.errors import FailedPrecondition, OutcomeUnknown, ResourceExhausted, Unavailable
from services.runtime.database import group_commit
from services.runtime.database.errors import StatementTimeout
from services.runtime.database.group_commit import GroupCommit


class Committing:
    """Commits when it is told to, and notes its batches.

    Args:
        errors: What a batch raises that has this item.
    """

    def __init__(self, **errors: Exception) -> None:
        self.batches: list[list[str]] = []
        self.errors = errors
        self.may_commit = asyncio.Event()
        self.begun = asyncio.Semaphore(0)
        self.running = 0
        self.most = 0

    async def __call__(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.release()
        await self.may_commit.wait()
        self.running -= 1
        for item in items:
            if item in self.errors:
                raise self.errors[item]
        return [f"{item} done" for item in items]


async def begun(committing: Committing, commits: GroupCommit[str, str], *items: str) -> list[asyncio.Task[str]]:
    """Ask for the items, the first of which is being committed when this returns."""
    tasks = [asyncio.create_task(commits.run(item)) for item in items]
    await committing.begun.acquire()
    return tasks


async def test_items_that_come_during_a_commit_are_the_next_batch() -> None:
    """The first one waits for no timer."""
    committing = Committing()
    commits = GroupCommit(committing)
    first = await begun(committing, commits, "a")
    later = [asyncio.create_task(commits.run(item)) for item in "bcd"]
    await asyncio.sleep(0)
    assert committing.batches == [["a"]]
    committing.may_commit.set()
    assert [await task for task in (*first, *later)] == ["a done", "b done", "c done", "d done"]
    assert committing.batches == [["a"], ["b", "c", "d"]]
    assert committing.most == 1


async def test_caller_is_not_answered_before_its_batch_has_committed() -> None:
    committing = Committing()
    (task,) = await begun(committing, GroupCommit(committing), "a")
    await asyncio.sleep(0)
    assert not task.done()
    committing.may_commit.set()
    assert await task == "a done"


async def test_batch_has_a_bounded_size_and_is_first_come_first_served() -> None:
    committing = Committing()
    committing.may_commit.set()
    commits = GroupCommit(committing, limit=3)
    assert await commits.run_all("abcdefg") == [f"{item} done" for item in "abcdefg"]
    assert committing.batches == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


async def test_items_with_one_key_are_committed_one_after_the_other() -> None:
    """In the order in which they came; others are not held up."""
    committing = Committing()
    committing.may_commit.set()
    commits = GroupCommit(committing, key=lambda item: item[0])
    outcomes = await commits.run_all(["a1", "a2", "b1", "a3", "b2"])
    assert outcomes == [f"{item} done" for item in ("a1", "a2", "b1", "a3", "b2")]
    assert committing.batches == [["a1", "b1"], ["a2", "b2"], ["a3"]]


async def test_item_that_cannot_be_committed_fails_alone() -> None:
    """Of two hundred callers one is refused, and each of the others is answered."""
    refusal = FailedPrecondition("POISONED", "refused by the database")
    committing = Committing(i77=refusal)
    committing.may_commit.set()
    commits = GroupCommit(committing)
    outcomes = await asyncio.gather(*(commits.run(f"i{number}") for number in range(200)), return_exceptions=True)
    assert [number for number, outcome in enumerate(outcomes) if outcome is refusal] == [77]
    assert [outcome for outcome in outcomes if outcome is not refusal] == [
        f"i{number} done" for number in range(200) if number != 77
    ]


async def test_item_whose_row_is_locked_fails_alone() -> None:
    """The server ended its statement, so the others are committed without it, at the same time."""
    timeout = StatementTimeout("DATABASE_UNAVAILABLE", "busy")
    committing = Committing(b=timeout)
    committing.may_commit.set()
    commits = GroupCommit(committing)
    assert await asyncio.gather(*(commits.run(item) for item in "abc"), return_exceptions=True) == [
        "a done",
        timeout,
        "c done",
    ]
    assert committing.batches == [["a", "b", "c"], ["a"], ["b"], ["c"]]


@pytest.mark.parametrize("error", [Unavailable("AWAY", "away"), OutcomeUnknown("OUTCOME_UNKNOWN", "not answered")])
async def test_error_of_the_database_is_the_outcome_of_the_whole_batch(error: Exception) -> None:
    """To try each item alone would wait for a database that is away once for each of them, or commit it twice."""
    committing = Committing(b=error)
    committing.may_commit.set()
    commits = GroupCommit(committing)
    outcomes = await asyncio.gather(*(commits.run(item) for item in "abc"), return_exceptions=True)
    assert outcomes == [error] * 3
    assert committing.batches == [["a", "b", "c"]]
    assert await commits.run("d") == "d done"


async def test_cancelled_caller_leaves_its_item_and_the_others_to_be_committed() -> None:
    committing = Committing()
    commits = GroupCommit(committing)
    first = await begun(committing, commits, "a")
    later = [asyncio.create_task(commits.run(item)) for item in "bc"]
    await asyncio.sleep(0)
    first[0].cancel()
    later[0].cancel()
    committing.may_commit.set()
    assert await later[1] == "c done"
    assert committing.batches == [["a"], ["b", "c"]]
    assert first[0].cancelled()
    assert later[0].cancelled()


async def test_too_many_waiting_items_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "_WAITING", 2)
    committing = Committing()
    commits = GroupCommit(committing)
    tasks = await begun(committing, commits, "a")
    tasks += [asyncio.create_task(commits.run(item)) for item in "bc"]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="try again"):
        await commits.run("d")
    committing.may_commit.set()
    assert [await task for task in tasks] == ["a done", "b done", "c done"]


async def test_sizes_of_commits_are_told() -> None:
    """Of those that were made: a batch that cannot be committed is told by its items, each alone."""
    sizes: list[int] = []
    committing = Committing(c=FailedPrecondition("NO", "no"))
    commits = GroupCommit(committing, committed=sizes.append)
    first = await begun(committing, commits, "a")
    later = [asyncio.create_task(commits.run(item)) for item in "bd"]
    await asyncio.sleep(0)
    committing.may_commit.set()
    await asyncio.gather(*first, *later)
    with pytest.raises(FailedPrecondition):
        await commits.run("c")
    assert sizes == [1, 2]


async def test_no_items_are_no_commit() -> None:
    committing = Committing()
    assert await GroupCommit(committing).run_all([]) == []
    assert committing.batches == []
