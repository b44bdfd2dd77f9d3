from celery import shared_task
from django.utils import timezone

from purge import expiry_warnings, jobs, orphans


@shared_task(ignore_result=True)
def tick() -> None:
    jobs.tick(now=timezone.now())


@shared_task(ignore_result=True)
def purge_expired() -> None:
    jobs.purge_expired(now=timezone.now())


@shared_task(ignore_result=True)
def report_differences() -> None:
    orphans.report(now=timezone.now())


@shared_task(ignore_result=True)
def announce() -> None:
    expiry_warnings.announce(now=timezone.now())
