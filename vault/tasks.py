from celery import shared_task
from django.utils import timezone

from vault import audit_checkpoints


@shared_task(ignore_result=True)
def publish_audit_checkpoint() -> None:
    audit_checkpoints.publish(now=timezone.now())
