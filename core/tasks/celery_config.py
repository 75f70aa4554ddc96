"""Settings → Celery's configuration: one line a key, and why.

What is not set here is Celery's default. `Settings.celery` is merged last, over everything.
"""

import re
from typing import Any

from core.config import Settings
from core.errors import ConfigurationError
from core.redis_url import BrokerURL, RedisURL

#: Seconds after which what a lost worker held is put back where Celery's own transport took it. There, longer tasks
#: and countdowns run twice.
VISIBILITY_TIMEOUT = 7200
#: The consumer of a worker that takes its calls with our own transport.
CONSUMER = "core.tasks.transport.consumer:Consumer"
POOL = "core.tasks.pool:TaskPool"


def pool_name(module: str) -> str:
    """A pool by the name that users know, from the module of its class."""
    return "asyncio" if module == POOL.partition(":")[0] else module.rpartition(".")[2].replace("thread", "threads")


def is_one_database(conf: Any) -> bool:
    """Whether our transport takes the calls, and finds results and cancellations where it finds the calls."""
    options = conf.broker_transport_options, conf.result_backend_transport_options
    places = [
        (re.sub(r"//[^/;]*@", "//", url or ""), option.get("master_name"))
        for url, option in zip((conf.broker_url, conf.result_backend), options, strict=True)
    ]
    return conf.worker_consumer == CONSUMER and places[0] == places[1]


def generate(settings: Settings, broker: RedisURL | BrokerURL, results: RedisURL, project: str) -> dict[str, Any]:
    """Celery's configuration for these settings.

    Args:
        broker: Where the broker is.
        results: Where the results are, and the schedule where the broker is no Redis.
        project: The name that keeps this project's schedule apart from others in the same database.

    Raises:
        ConfigurationError: Two of them do not go together.
    """
    schedule = broker if isinstance(broker, RedisURL) else results
    if settings.task_signing_keys and not settings.uses_core_transport:
        raise ConfigurationError("task_signing_keys is for a broker that is Redis, with task_broker_transport core.")
    config: dict[str, Any] = {
        # Where things are. RedBeat gets its password beside the URL, since Celery's reports print the URL.
        "broker_url": broker.for_celery(),
        "result_backend": results.for_results(),
        "redbeat_redis_url": schedule.for_schedule(),
        "redbeat_redis_options": _redbeat_options(schedule),
        "redbeat_key_prefix": f"{project}:beat:",  # two projects in one database delete each other's entries
        # Certificates are checked: Celery's broker does not by itself.
        "broker_use_ssl": broker.tls_options() or False,
        "redis_backend_use_ssl": results.tls_options() or False,
        "redbeat_redis_use_ssl": schedule.tls_options() or False,
        # JSON only: whoever can write to Redis could run code through anything else.
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        # A call is taken off the queue when it is done, not when it begins: a killed worker loses nothing.
        "task_acks_late": True,
        "task_acks_on_failure_or_timeout": True,  # a call that failed has been run
        "worker_prefetch_multiplier": 1,  # a slow call holds no others back
        "worker_deduplicate_successful_tasks": False,  # costs a read a call and is not exact
        "broker_transport_options": _transport_options(broker),
        "broker_channel_error_retry": True,  # a failover or a full Redis ends the worker otherwise
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a worker joins whenever Redis is back
        "broker_pool_acquire_timeout": settings.task_publish_timeout,
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
        # Results: kept for a day, with what Flower shows beside them.
        "task_ignore_result": False,
        "task_track_started": True,  # `running` is one of the four status words
        "result_expires": settings.task_result_expires,
        "result_extended": settings.task_store_arguments,
        "result_backend_always_retry": True,
        "result_backend_max_retries": 5,  # infinite by default
        "result_backend_transport_options": {
            "retry_policy": {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
            **_by_way_of_sentinel(results),
        },
        "redis_socket_timeout": 5.0,  # 120 by default
        "redis_socket_connect_timeout": 3.0,
        "redis_socket_keepalive": results.socket is None,  # a unix socket has nothing to keep alive
        "redis_backend_health_check_interval": 25,
        # Queues: any name is accepted here, since stock producers may use one; our `delay` checks.
        "task_default_queue": settings.task_default_queue,
        "task_create_missing_queues": True,
        # The worker.
        "worker_pool": POOL if settings.task_worker_pool == "asyncio" else settings.task_worker_pool,
        "worker_hijack_root_logger": False,  # logging that the project set up stays as it is
        "worker_redirect_stdouts": False,  # what a task prints is not a log line
        "worker_log_format": "%(asctime)s %(levelname)s %(message)s",
        "worker_task_log_format": "%(asctime)s %(levelname)s %(message)s",
        "worker_log_color": False,
        "worker_send_task_events": False,  # two messages a call; Flower turns them on when it looks
        "worker_enable_remote_control": settings.remote_control != "off",
        "task_send_sent_event": False,  # a PUBLISH for every call, and Flower shows a call when a worker has it
        # The schedule.
        "enable_utc": True,
        "timezone": settings.task_timezone,
        "beat_scheduler": "core.tasks.beat:Scheduler",
        "beat_max_loop_interval": 5,  # a change in the schedule is seen within 5 s, not 5 minutes
        "redbeat_lock_timeout": 30,  # a killed scheduler is replaced after 30 s, not 25 minutes
    }
    if settings.task_broker_transport == "core" and isinstance(broker, RedisURL):
        config |= {
            "worker_consumer": CONSUMER,
            # A call that lost its pool process goes back into its queue, three times at most.
            "task_reject_on_worker_lost": True,
            "task_retry_on_worker_lost": False,
            # What runs keeps its messages when a connection is lost, and is counted already.
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "worker_enable_prefetch_count_reduction": False,
        }
    else:
        config |= {
            "task_reject_on_worker_lost": False,  # a call that kills its process would do so for ever
            "task_retry_on_worker_lost": True,  # its pool process was killed: try again, max_retries times
            # Redis gives the messages of what runs out again, so it is ended.
            "worker_cancel_long_running_tasks_on_connection_loss": True,
            "worker_enable_prefetch_count_reduction": False,  # it may stay reduced, and the worker takes nothing more
        }
    if settings.task_worker_concurrency is not None:
        config["worker_concurrency"] = settings.task_worker_concurrency
    for key, value in settings.celery.items():
        both = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if both else value
    return config


def _transport_options(broker: RedisURL | BrokerURL) -> dict[str, Any]:
    if isinstance(broker, RedisURL):
        return {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_restore_interval": 10,  # look for lost calls every 10 s, not every 100
            "unacked_restore_throttle": 1,
            "socket_timeout": 5.0,  # a frozen Redis must not hang its callers
            "socket_connect_timeout": 3.0,
            "socket_keepalive": True,
            "health_check_interval": 25,
            **_by_way_of_sentinel(broker),
        }
    if broker.scheme == "sqs":
        return {"visibility_timeout": VISIBILITY_TIMEOUT}  # 1,800 by default: a longer call would run twice
    return {"confirm_publish": True}  # without it a call is sent, and nobody knows whether it arrived


def _by_way_of_sentinel(url: RedisURL) -> dict[str, Any]:
    return {"master_name": url.master, "sentinel_kwargs": url.sentinel_options()} if url.sentinels else {}


def _redbeat_options(schedule: RedisURL) -> dict[str, Any]:
    options: dict[str, Any] = {**schedule.timeouts()}
    if schedule.password:
        options["password"] = schedule.password
    if schedule.username:
        options["username"] = schedule.username
    if schedule.sentinels:
        options |= {
            "sentinels": list(schedule.sentinels),
            "service_name": schedule.master,
            "sentinel_kwargs": schedule.sentinel_options(),
            "db": schedule.db,
        }
    return options


def masked(generated: dict[str, Any]) -> dict[str, Any]:
    """A configuration without its passwords, for people to read."""
    return {key: _masked(key, value) for key, value in generated.items()}


def _masked(key: str, value: Any) -> Any:
    """A value without its passwords, which `Settings.celery` may hold at any depth and in any URL."""
    if value and any(word in key.lower() for word in ("password", "secret", "token")):
        return "********"
    if isinstance(value, dict):
        return {name: _masked(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_masked("", inner) for inner in value)
    return re.sub(r"(://[^:@\s]*:)\S*@", r"\1********@", value) if isinstance(value, str) else value
