"""What commands to a worker stand on."""

from celery.worker import state

from core.tasks import control


class Request:
    """What a weak reference can be kept of."""


def test_celerys_sets_of_requests_can_be_gone_through_while_others_change_them() -> None:
    control.steady_requests()
    kept = [Request() for _ in range(3)]
    for requests in (state.active_requests, state.reserved_requests, state.scheduled_requests):
        requests.update(kept[:2])

        going = iter(requests)
        first = next(going)
        requests.add(kept[2])
        requests.discard(kept[0])

        assert {first, *going} == set(kept[:2])
        requests.difference_update(kept)
