from celery import shared_task
from django.utils import timezone

from egress import schedule


@shared_task(ignore_result=True)
def tick() -> None:
    schedule.tick(now=timezone.now())


@shared_task(ignore_result=True)
def build_packages() -> None:
    schedule.pack()
