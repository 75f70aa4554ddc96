"""What both type checkers refuse: each line that ends in `E` and a number. Nothing here is ever run."""

from datetime import timedelta

from core.tasks import TaskResult, current, periodic_task, task


@task
async def send_email(to: str, subject: str, body: str) -> int:
    return 1


@task
def plain(number: int) -> str:
    return str(number)


@periodic_task(interval=timedelta(minutes=1))
async def minutely() -> None: ...


async def delay_checks_the_arguments() -> None:
    await send_email.delay("a@b", "s")  # E1
    await send_email.delay("a@b", "s", 3)  # E2
    await send_email.delay("a@b", "s", "b", conutdown=60)  # E3
    await send_email.options(countdown="x").delay("a", "b", "c")  # E4
    await send_email.options(countdown=1).delay("a", "b")  # E5
    await send_email.delay("a@b", "s", "b", countdown="x")  # E6
    await send_email.options(conutdown=1).delay("a", "b", "c")  # E7
    await plain.delay("1")  # E8
    await minutely.delay(1)  # E9
    send_email.options(countdown=1).delay_sync("a", "b")  # E10


async def inline_calls_are_checked() -> None:
    await send_email("a@b", "s")  # E11
    await send_email("a@b", "s", "b", countdown=1)  # E12
    await plain(1)  # E13
    plain("1")  # E14


async def results_have_a_type() -> None:
    call = await send_email.delay("a@b", "s", "b")
    text: str = await call.get()  # E15
    wrong: TaskResult[str] = call  # E16
    await call  # E17
    print(text, wrong)


async def progress_is_numbers_and_text() -> None:
    await current().progress("1")  # E22
    current().progress_sync(1, message=2)  # E23
    for update in (await send_email.delay("a@b", "s", "b")).progress():  # E24
        print(update)


@task(qeue="x")  # E18
async def mistyped() -> None: ...


@task(max_retries="3")  # E19
async def wrong_kind() -> None: ...


@periodic_task(cron="0 * * * *", interval=1)  # E20
async def both() -> None: ...


@periodic_task()  # E21
async def neither() -> None: ...
