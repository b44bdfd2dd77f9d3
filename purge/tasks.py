from celery import shared_task
from django.utils import timezone

from purge import announcing, schedule, sweeping


@shared_task(ignore_result=True)
def tick() -> None:
    schedule.tick(now=timezone.now())


@shared_task(ignore_result=True)
def purge_expired() -> None:
    schedule.purge_expired(now=timezone.now())


@shared_task(ignore_result=True)
def report_differences() -> None:
    sweeping.report(now=timezone.now())


@shared_task(ignore_result=True)
def announce() -> None:
    announcing.announce(now=timezone.now())
