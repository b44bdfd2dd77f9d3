from celery import shared_task
from django.utils import timezone

from files import cleanup, quota


@shared_task(ignore_result=True)
def tick() -> None:
    now = timezone.now()
    cleanup.give_up_stalled_uploads(now=now)
    cleanup.erase_due(now=now)
    cleanup.forget_dead_links(now=now)


@shared_task(ignore_result=True)
def recount() -> None:
    quota.recount(now=timezone.now())
