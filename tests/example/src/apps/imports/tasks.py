import asyncio

from core.tasks import current, task


@task
async def import_orders(rows: int, seconds: float = 0.1) -> int:
    """Import some orders, and say how far it is."""
    for row in range(1, rows + 1):
        await asyncio.sleep(seconds)
        await current().progress(row, rows, f"order {row}")
    return rows
