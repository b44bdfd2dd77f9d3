from celery import shared_task
from django.utils import timezone

from files import erasing, recounting


@shared_task(ignore_result=True)
def tick() -> None:
    now = timezone.now()
    erasing.give_up_stalled_uploads(now=now)
    erasing.erase_due(now=now)
    erasing.forget_dead_links(now=now)


@shared_task(ignore_result=True)
def recount() -> None:
    recounting.recount(now=timezone.now())
