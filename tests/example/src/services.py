"""What the page's tasks call: stand-ins that only say what they would have done."""


class EmailService:
    async def send(self, to: str, subject: str, body: str) -> None:
        print(f"mail to {to}: {subject}", flush=True)


email_service = EmailService()


async def notify_user(user_id: int, message: str) -> None:
    print(f"notified {user_id}: {message}", flush=True)
