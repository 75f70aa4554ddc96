"""How a look at the server tells that all calls of a drain are settled, for each peer: cheaply, while it goes on."""

from typing import Any

from bench.drains import NO_CALLS, succeeded

#: Keys of stored results.
KEYS = {
    "celery": "celery-task-meta-*",
    "taskiq": "result:*",
    "dramatiq": "dramatiq-results:*",
    "streaq": "streaq:default:task:results:*",
    "arq": "arq:result:*",
    "limit": "result:*",
}
#: Commands that `count` sends, in one round trip.
COMMANDS = {**dict.fromkeys(KEYS, 1), "huey": 1, "rq": 1, "saq": 1, "ours": 3}


def stored(client: Any, peer: str) -> int:
    """How many results there are."""
    if peer == "ours":
        return succeeded(client)
    if peer == "saq":
        jobs = client.mget(client.keys("saq:job:*") or ["none"])
        return sum(job is not None and b'"status": "complete"' in job for job in jobs)
    if peer == "huey":
        return int(client.hlen("huey.results.bench"))
    if peer == "rq":
        return int(client.zcard("rq:finished:default"))
    return len(client.keys(KEYS[peer]))


def count(client: Any, peer: str, expected: int) -> int:
    """How many calls are not settled yet.

    Args:
        expected: How many results there are when all are; not needed where the peer keeps a list of what is open.
    """
    if peer == "saq":
        return int(client.zcard("saq:default:incomplete"))
    if peer == "ours":
        with client.pipeline(transaction=False) as asked:
            asked.llen("default").hlen("unacked")
            asked.eval(HELD, 1, "core-workers")
            return int(sum(asked.execute()))
    return expected - stored(client, peer)


#: What our workers hold, beside what their hashes say of themselves.
HELD = (
    "local held = 0 "
    "for _, worker in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do "
    "for _, name in ipairs(redis.call('HKEYS', 'core-held-' .. worker)) do "
    + "if "
    + " and ".join(f"name ~= '{name.decode()}'" for name in sorted(NO_CALLS))
    + " then held = held + 1 end end end return held"
)
