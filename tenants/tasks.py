from celery import shared_task
from django.utils import timezone

from tenants import services
from tenants.work import outbox


@shared_task
def tick() -> None:
    services.delete_expired(now=timezone.now())


@shared_task
def send_mail() -> None:
    outbox.send_due(now=timezone.now())
