from core.tasks import task


@task
async def send_email(to: str, subject: str, body: str):
    """Send email asynchronously."""
    return {"sent": True}
