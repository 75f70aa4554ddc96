"""Why tests of Celery's suite are left out, run otherwise, skipped, or fail: written by hand, checked by each run."""

from typing import NamedTuple

#: The files of the suite that are run: those that a worker has a part in.
FILES = (
    "test_tasks",
    "test_canvas",
    "test_group_chains",
    "test_inspect",
    "test_worker",
    "test_redis_backend",
    "test_beat",
)
#: The others, and why they are not.
LEFT_OUT = (
    (("test_backend", "test_cache_backend", "test_database_backend"), "result backends other than Redis"),
    (
        ("test_security", "test_serialization"),
        "messages that are signed or pickled; `core.tasks` reads JSON only",
    ),
    (
        ("test_loader", "test_logfile_format", "test_upgrade"),
        "commands and functions of Celery that have no part in a running worker",
    ),
    (
        ("test_connection_recovery", "test_request_backend_down"),
        "methods of Celery's own consumer and request, called on stand-ins; `make test-faults` has such faults",
    ),
    (
        (
            "test_backend_leak_in_fixture_teardown",
            "test_events_state_memory_leak",
            "test_mem_leak_in_exception_handling",
        ),
        "leaks in objects that the tests make themselves",
    ),
)
#: Tests that look into the worker's memory, so that the worker has to be in their process.
INSIDE = frozenset(
    {
        "test_tasks::test_send_task_without_ignore_result_uses_task_ignore_result",
        "test_tasks::test_send_task_without_ignore_result_stores_result",
        "test_tasks::test_revoked_by_headers_simple_canvas",
        "test_tasks::test_task_success",
        "test_tasks::test_task_failed",
        "test_tasks::test_retry_preserves_ignore_result_false",
        "test_tasks::test_retry_preserves_ignore_result_true",
        "test_tasks::test_replaced_task_nesting_level_0",
        "test_tasks::test_replaced_task_nesting_level_1",
        "test_tasks::test_replaced_task_nesting_chain",
        "test_tasks::test_each_instance_receives",
        "test_tasks::test_disconnect_leaves_other_instance_connected",
        "test_tasks::test_other_instance_receives_after_garbage_collection",
        "test_inspect::test_stats",
        "test_inspect::test_hello_stamps_received_revoked_ids_locally",
        "test_canvas::test_chord_error_propagation_with_different_body_types",
        "test_canvas::test_chord_error_in_nested_chain_does_not_crash",
        "test_canvas::test_stamping_workflow",
        "test_canvas::test_task_received_has_access_to_stamps",
        "test_canvas::test_all_tasks_of_canvas_are_stamped",
        "test_canvas::test_replace_merge_stamps",
        "test_canvas::test_linking_stamped_sig",
        "test_canvas::test_err_linking_stamped_sig",
        "test_canvas::test_stamps_remain_on_task_retry",
    }
)


EVERY = ("control", "asyncio", "loop", "prefork", "threads")
OURS = EVERY[1:]


class Reason(NamedTuple):
    """Why tests do not pass on some workers."""

    tests: tuple[str, ...]
    why: str
    #: Those on which they do not: the control, and ours by pool.
    pools: tuple[str, ...] = EVERY
    #: Whether they pass now and then.
    sometimes: bool = False


REASONS = (
    Reason(
        ("test_tasks::test_multiprocess_producer", "test_tasks::test_multithread_producer"),
        "Celery skips it as broken.",
    ),
    Reason(("test_tasks::test_task_accepted",), "Celery skips it, since it fails at random."),
    Reason(
        (
            "test_canvas::test_redis_subscribed_channels_leak",
            "test_canvas::test_error_propagates_from_chord",
        ),
        "Celery expects it to fail.",
    ),
    Reason(
        ("test_canvas::test_chord_header_id_duplicated_on_rabbitmq_msg_duplication",),
        "It is for RabbitMQ.",
    ),
    Reason(
        (
            "test_worker::test_django_fixup_direct_worker",
            "test_worker::test_django_fixup_installs_django_task_for_celery_subclass",
            "test_worker::test_django_fixup_signals_only_handled_by_own_app",
        ),
        "It needs Django, which is not installed here.",
    ),
    Reason(
        ("test_inspect::test_active", "test_inspect::test_query_task"),
        "It expects a running call to be acknowledged. `core.tasks` acknowledges a call when it is done, so that a "
        "killed worker loses nothing.",
        OURS,
    ),
    Reason(
        ("test_inspect::test_scheduled",),
        "It expects a call with an eta in the worker's memory. Here it waits in Redis until it is due, and any worker "
        "takes it.",
        OURS,
    ),
    Reason(
        ("test_canvas::test_chord_soft_timeout_recuperation",),
        "Nothing interrupts a plain function in a thread, nor one that holds up the loop, so its soft time limit is "
        "not raised there; Celery's own pool of threads has none either.",
        ("asyncio", "loop", "threads"),
    ),
    Reason(
        ("test_inspect::test_stats",),
        "It expects a list of the pool's processes; a pool of threads has none, nor has Celery's own.",
        ("asyncio", "loop", "threads"),
    ),
    Reason(
        ("test_tasks::test_replaced_task_nesting_level_0",),
        "It makes a call, and only then resets the variable that is set when the worker takes it: a worker can be "
        "faster than that.",
        sometimes=True,
    ),
)


def short(node: str) -> str:
    """A test's name as it is written here: its file and function, without its class and parameters."""
    file, _, rest = node.partition("[")[0].rpartition("/")[2].partition(".py::")
    return f"{file}::{rest.rpartition('::')[2]}"
