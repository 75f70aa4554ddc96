"""How many attempts a call has and how long it waits: the rules alone, without a worker."""

from typing import Any

import pytest

from core.errors import OptionError, TaskError, TaskTimeout
from core.tasks.retry import LONGEST_BACKOFF, RetryPolicy, mark_from_call


class Own(TaskError): ...


class Other(Exception): ...


def delays(policy: RetryPolicy, error: Exception) -> list[float]:
    """The pauses of a call that fails with the same error every time."""
    found: list[float] = []
    while (delay := policy.next_delay(error, len(found) + 1)) is not None:
        found.append(delay)
    return found


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_max_retries_counts_the_attempts_after_the_first(retries: int) -> None:
    assert delays(RetryPolicy(retries, 60), TaskError("x")) == [60.0] * retries


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (TaskError("x"), True),
        (Own("x"), True),
        (Other("x"), False),
        (ConnectionError("x"), False),
        (TaskTimeout("f", 1, "the timeout of its decorator"), False),
    ],
)
def test_task_errors_are_retried_and_nothing_else(error: Exception, retried: bool) -> None:
    assert RetryPolicy(1, 60).retries(error) is retried


def test_retry_on_adds_classes_and_their_subclasses() -> None:
    policy = RetryPolicy(1, 60, retry_on=(OSError, TaskTimeout))

    assert policy.retries(ConnectionError())
    assert policy.retries(TaskTimeout("f", 1, "the timeout of its decorator"))
    assert policy.retries(TaskError("x"))
    assert not policy.retries(Other())


def test_another_calls_error_is_not_retried_unless_it_is_named() -> None:
    """Else each attempt of the outer call would repeat all attempts of the inner one."""
    error = TaskError("from a child")
    mark_from_call(error)

    assert not RetryPolicy(3, 60).retries(error)
    assert RetryPolicy(3, 60, retry_on=(TaskError,)).retries(error)


def test_an_error_made_from_another_calls_error_is_the_tasks_own() -> None:
    child = TaskError("from a child")
    mark_from_call(child)
    own = TaskError("mine")
    own.__cause__ = child

    assert RetryPolicy(3, 60).retries(own)


def test_an_error_that_cannot_be_marked_is_let_through() -> None:
    class Slotted(Exception):
        __slots__ = ()

    class NoMark(Slotted):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    mark_from_call(NoMark())


def test_backoff_doubles_the_delay_up_to_an_hour() -> None:
    assert delays(RetryPolicy(8, 60, backoff=True), TaskError()) == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_backoff_never_shortens_a_long_delay_of_the_users() -> None:
    assert delays(RetryPolicy(3, 7200, backoff=True), TaskError()) == [7200.0] * 3


def test_backoff_stays_a_number_after_very_many_attempts() -> None:
    policy = RetryPolicy(10_000, 60, backoff=True)

    assert policy.next_delay(TaskError(), 9_999) == LONGEST_BACKOFF
    assert RetryPolicy(10_000, 0, backoff=True).next_delay(TaskError(), 9_999) == 0


@pytest.mark.parametrize("seconds", [0, 0.5, 7])
def test_an_error_that_asks_for_its_own_delay_gets_it(seconds: float) -> None:
    error = TaskError("soon", retry_in=seconds)

    assert RetryPolicy(2, 60).next_delay(error, 1) == seconds
    assert RetryPolicy(2, 60, backoff=True).next_delay(error, 2) == seconds
    assert RetryPolicy(2, 60).next_delay(error, 3) is None


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, False, "5", [1]])
def test_an_error_that_asks_for_a_delay_that_means_nothing_is_refused(seconds: Any) -> None:
    with pytest.raises(OptionError, match="retry_in=") as caught:
        TaskError("x", retry_in=seconds)

    assert repr(seconds) in str(caught.value)


def test_a_delay_of_zero_is_at_once() -> None:
    assert delays(RetryPolicy(2, 0), TaskError()) == [0.0, 0.0]
