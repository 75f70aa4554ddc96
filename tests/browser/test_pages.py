"""What somebody sees in Flower, with a browser: every page, every pool, `core flower` and `celery -A core flower`."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from browser.shop import QUEUES, SECRET, WIDTH, Shop, words
from support import wait_until

pytestmark = pytest.mark.chromium

#: Where the pictures of docs/howto/monitoring.md are, and the most bytes that one may have.
PICTURES, LARGEST = Path(__file__).parents[2] / "docs/howto", 80_000

WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"


def picture(shop: Shop, name: str, height: int) -> None:
    """Keep what the browser shows now."""
    if shop.is_ours:
        file = Path(os.environ.get("PICTURES", PICTURES)) / f"flower-{name}.png"
        shop.page.screenshot(path=file, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        assert file.stat().st_size < LARGEST, f"{file} is too large for a page of the docs"


def table(shop: Shop, selector: str) -> list[dict[str, str]]:
    """The rows of a table, by the words at its top."""
    found = shop.page.locator(selector)
    head = [words(cell) for cell in found.locator("thead th").all()]
    return [
        dict(zip(head, map(words, row.locator("td").all()), strict=True)) for row in found.locator("tbody tr").all()
    ]


def said(shop: Shop) -> str:
    """The message that a button has brought up; it is closed again."""
    toast = shop.page.locator(".toast.show").last
    toast.wait_for()
    text: str = toast.locator(".toast-body").inner_text()
    toast.locator(".btn-close").click()
    toast.wait_for(state="detached")
    return text


def test_the_workers_and_what_they_have_done(served: Shop) -> None:
    served.open("/workers")

    def rows() -> dict[str, dict[str, str]]:
        return {row["Worker"]: row for row in table(served, "#workers-table")}

    wait_until(lambda: all(row["Active"] == "1" for row in rows().values()), 15, "one long call runs on each")
    for pool in QUEUES:
        row = rows()[served.node(pool)]
        assert row["Status"] == "Online", row
        # Flower counts attempts, of which `fetch` had two.
        assert [row[key] for key in ("Processed", "Failed", "Succeeded")] == ["9", "2", "4"], (pool, row)
        assert re.fullmatch(r"[\d.]+", row["Load Average"]), row
    assert served.page.locator("#workers-online").inner_text() == "3"
    picture(served, "workers", height=590)


def test_the_tasks_in_a_table(served: Shop) -> None:
    served.open("/tasks")
    served.page.locator("#tasks-table tbody .task-uuid-full").first.wait_for()
    served.page.select_option(".dataTables_length select", "50")
    wait_until(lambda: len(table(served, "#tasks-table")) == 24, 10, "all calls are there")
    rows = table(served, "#tasks-table")
    by_id = {row["UUID"][:36]: row for row in rows}  # its first eight characters follow, for narrow screens
    for pool, calls in served.calls.items():
        sent, failed, retried, runs, hidden = (
            by_id[calls[name]] for name in ("send", "charge", "fetch_later", "follow", "register")
        )
        assert (sent["Name"], sent["State"], sent["Worker"]) == ("src.tasks.send", "SUCCESS", served.node(pool))
        assert re.fullmatch(WHEN, sent["Received"]), sent
        assert (bool(sent["Runtime"]), failed["Runtime"]) == (True, "")
        assert [row["State"] for row in (failed, retried, runs)] == ["FAILURE", "RETRY", "STARTED"]
        if not served.is_ours:  # which was told to show the other columns, too
            assert (sent["args"], sent["kwargs"]) == ("['ann@example.com']", "{'subject': 'Welcome!'}")
            assert (sent["Result"], bool(re.fullmatch(WHEN, sent["Started"]))) == ("{'sent': True}", True)
            assert (failed["args"], hidden["args"]) == ("[7]", "['ann', '********']")
    served.page.locator("button[data-task-state=FAILURE]").click()
    wait_until(lambda: {row["State"] for row in table(served, "#tasks-table")} == {"FAILURE"}, 10, "only failures")
    served.open(f"/tasks?worker={served.node('asyncio')}")
    wait_until(lambda: len(table(served, "#tasks-table")) == 8, 10, "only those of one worker")
    picture(served, "tasks", height=625)


@pytest.mark.parametrize("pool", QUEUES)
def test_one_call_that_went_well_failed_was_tried_again_and_has_a_secret(served: Shop, pool: str) -> None:
    sent = served.facts(pool, "send")
    assert (sent["Name"], sent["Status"], sent["Arguments"]) == ("src.tasks.send", "SUCCESS", "['ann@example.com']")
    assert (sent["Keyword arguments"], sent["Result"]) == ("{'subject': 'Welcome!'}", "{'sent': True}")
    assert (sent["Worker"], sent["Retries"]) == (served.node(pool), "0")
    assert {"Received", "Started", "Succeeded", "Runtime"} <= set(sent)

    failed = served.facts(pool, "charge")
    assert (failed["Status"], failed["Exception"]) == ("FAILURE", "ValueError('order 7 is paid already')")
    assert failed["Traceback"].endswith("ValueError: order 7 is paid already")
    if pool == "asyncio":
        row = served.page.locator(".detail-row", has=served.page.locator("dt", has_text="Traceback")).bounding_box()
        picture(served, "task", height=int(row["y"]))  # paths of this machine follow

    again = served.facts(pool, "fetch")
    assert (again["Status"], again["Result"], again["Retries"]) == ("SUCCESS", "'rates'", "1")
    assert (again["Exception"], "Retried" in again) == ("TaskError('the server is busy')", True)

    assert served.facts(pool, "register")["Arguments"] == "['ann', '********']"
    hidden = served.facts(pool, "register_nobody")
    assert (hidden["Status"], hidden["Keyword arguments"]) == ("FAILURE", "{'password': '********'}")


@pytest.mark.parametrize("pool", QUEUES)
def test_one_worker_on_all_its_tabs(served: Shop, pool: str) -> None:
    page = served.open(f"/worker/{served.node(pool)}")

    def tab(name: str) -> str:
        page.locator(f"#worker-tab-{name}").click()
        page.locator(f"#tab-{name}.active").wait_for()
        return words(page.locator(f"#tab-{name}"))

    facts = tab("pool")
    implementation = {"asyncio": "core.tasks.pool:TaskPool", "threads": "celery.concurrency.thread:TaskPool",
                      "prefork": "celery.concurrency.prefork:TaskPool"}[pool]  # fmt: skip
    assert implementation.capitalize() in facts.replace("TaskPool", "taskpool"), facts
    assert re.search(r"Max.concurrency\s+6", facts), facts
    assert re.search(rf"Worker PID\s+{served.workers[pool].pid:,}|Worker PID\s+{served.workers[pool].pid}", facts), (
        facts
    )
    if pool == "asyncio":
        picture(served, "worker", height=680)
    assert "redis" in tab("broker")
    assert tab("queues").split("Add")[0].count(QUEUES[pool]) == 2  # its name and its routing key
    tasks = tab("tasks")
    assert re.search(r"src\.tasks\.send\s+1\n", tasks)
    assert served.calls[pool]["follow"] in tasks
    limits = tab("limits")
    assert all(f"src.tasks.{name}" in limits for name in ("send", "charge", "convert"))
    config = tab("config")
    assert re.search(r"task_default_queue\s+default", config)
    assert re.search(r"task_acks_late\s+True", config)
    assert "utime" in tab("system")


@pytest.mark.parametrize("pool", QUEUES)
def test_the_buttons_of_a_worker_answer_in_words(served: Shop, pool: str) -> None:
    page = served.open(f"/worker/{served.node(pool)}")

    page.locator("#worker-pool-grow").click()
    grown = said(served)
    page.locator("#worker-pool-shrink").click()
    shrunk = said(served)
    if pool == "threads":
        assert grown.endswith(": this pool keeps its size: start the worker anew, with another --concurrency.")
        assert shrunk.endswith(": this pool keeps its size: start the worker anew, with another --concurrency.")
    else:
        assert grown == f"Growing '{served.node(pool)}' worker's pool by 1"
        assert shrunk == f"Shrinking '{served.node(pool)}' worker's pool by 1"

    page.locator("#min-autoscale").fill("1")
    page.locator("#max-autoscale").fill("9")
    page.locator("#worker-pool-autoscale").click()
    assert "this worker does not scale its pool: one that can is started with --autoscale MAX,MIN." in said(served)

    page.locator("#worker-group").click()
    page.locator("#worker-pool-restart").click()
    assert "pools are not restarted here: start the worker anew." in said(served)

    page.locator("#worker-tab-limits").click()
    row = page.locator("#limits-table tr", has=page.get_by_text("src.tasks.send", exact=True))
    row.locator("input").first.fill("100")
    row.get_by_role("button", name="Apply").click()
    assert said(served) == "new rate limit set successfully"
    row.locator("input").last.fill("60")
    row.get_by_role("button", name="Hard").click()
    assert said(served) == "time limits set successfully"
    assert "pidbox command error" not in served.workers[pool].text()


@pytest.mark.parametrize("pool", QUEUES)
def test_a_call_that_runs_is_ended_and_one_that_waits_for_its_next_attempt_is_revoked(served: Shop, pool: str) -> None:
    body = {"args": [4], "queue": QUEUES[pool]}
    waits = served.client.post("/api/task/async-apply/src.tasks.fetch_later", json=body).json()["task-id"]
    assert served.facts(pool, "follow")["Status"] == "STARTED"
    served.page.locator("#task-terminate").click()
    assert said(served) == f"Revoked '{served.calls[pool]['follow']}'"
    assert served.facts_of(waits)["Status"] == "RETRY"
    served.page.locator("#task-revoke").click()
    assert said(served) == f"Revoked '{waits}'"

    wait_until(lambda: served.states(pool)["follow"] == "REVOKED", 10, "it has ended")
    ended = served.facts(pool, "follow")
    assert (ended["Status"], "Revoked" in ended) == ("REVOKED", True)
    assert served.page.locator("#task-terminate").count() == 0
    assert served.api(f"/api/task/result/{served.calls[pool]['follow']}")["state"] == "REVOKED"
    wait_until(lambda: served.api(f"/api/task/info/{waits}")["state"] == "REVOKED", 15, "it is not tried again")


def test_the_queues_and_how_much_waits(served: Shop) -> None:
    """Nobody serves `default`, but workers tell Flower of their queues: it counts those."""
    for name in ("files", "files", "mail"):
        pool = {queue: pool for pool, queue in QUEUES.items()}[name]
        served.client.post(f"/api/worker/queue/cancel-consumer/{served.node(pool)}?queue={name}").raise_for_status()
        served.client.post(
            "/api/task/send-task/src.tasks.send", json={"args": ["ann"], "queue": name}
        ).raise_for_status()
    served.open("/broker")
    rows = {row["Queue"]: row["Messages"] for row in table(served, "#queue-table")}

    assert rows == {"files": "2", "mail": "1", "reports": "0"}
    picture(served, "broker", height=380)


def test_the_figures_for_prometheus(served: Shop) -> None:
    text = served.client.get("/metrics").text

    for pool in QUEUES:
        node = served.node(pool)
        assert f'flower_worker_online{{worker="{node}"}} 1.0' in text
        assert f'flower_events_total{{task="src.tasks.charge",type="task-failed",worker="{node}"}} 1.0' in text
        assert f'flower_task_runtime_seconds_count{{task="src.tasks.convert",worker="{node}"}} 1.0' in text


def test_what_is_sensitive_is_on_no_page(served: Shop) -> None:
    pages = ["/workers", "/tasks", "/broker", "/metrics", "/api/tasks", "/api/workers"]
    for pool, calls in served.calls.items():
        pages.append(f"/worker/{served.node(pool)}")
        for name in ("register", "register_nobody"):
            pages += [f"/task/{calls[name]}", f"/api/task/info/{calls[name]}", f"/api/task/result/{calls[name]}"]
    for path in pages:
        text: Any = served.client.get(path).raise_for_status().text
        assert SECRET not in text, path
    assert SECRET not in served.flower.text()
