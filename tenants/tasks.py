from celery import shared_task
from django.utils import timezone

from tenants import services


@shared_task
def tick() -> None:
    services.forget_expired(now=timezone.now())
