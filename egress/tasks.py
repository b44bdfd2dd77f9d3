from celery import shared_task
from django.utils import timezone

from egress import jobs


@shared_task(ignore_result=True)
def tick() -> None:
    jobs.tick(now=timezone.now())


@shared_task(ignore_result=True)
def build_packages() -> None:
    jobs.build_packages()
