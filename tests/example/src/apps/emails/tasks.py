from core.tasks import task
from src.services import email_service, notify_user


@task
async def send_email(to: str, subject: str, body: str):
    """Send email asynchronously."""
    await email_service.send(to, subject, body)
    return {"sent": True}


@task(queue="high-priority")
async def send_urgent_notification(user_id: int, message: str):
    """High priority task."""
    await notify_user(user_id, message)
