from celery import shared_task
from django.utils import timezone

from files import cleanup, quota


@shared_task(ignore_result=True)
def tick() -> None:
    now = timezone.now()
    cleanup.abandon_stalled_uploads(now=now)
    cleanup.delete_due_objects(now=now)
    cleanup.delete_expired_links(now=now)


@shared_task(ignore_result=True)
def recount() -> None:
    quota.recount(now=timezone.now())
