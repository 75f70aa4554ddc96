from datetime import UTC, datetime

from core.tasks import periodic_task


@periodic_task(cron="0 * * * *")  # Every hour
async def cleanup_expired_tokens():
    """Run every hour."""


@periodic_task(interval=1)
async def sync_external_data():
    """Run every second."""
    print(f"tick {datetime.now(UTC):%H:%M:%S}", flush=True)
