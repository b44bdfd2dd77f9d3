"""The Celery app and its schedule. It holds no state: each tick looks for work in the database and does a limited part of it."""

import logging
import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.schedules import crontab
from celery.signals import beat_init, setup_logging, task_failure, worker_init
from django.conf import settings


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("strongroom")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
# A tick expires before the next one, so that a worker that was down for a day does not process 17,280 outdated ticks.
app.conf.beat_schedule = {
    "files": {"task": "files.tasks.tick", "schedule": 5.0, "options": {"expires": 4}},
    "mail": {"task": "tenants.tasks.send_mail", "schedule": 5.0, "options": {"expires": 4}},
    "audit checkpoint": {
        "task": "vault.tasks.publish_audit_checkpoint",
        "schedule": crontab(minute="*/10"),
        "options": {"expires": 540},
    },
    "egress": {"task": "egress.tasks.tick", "schedule": 5.0, "options": {"expires": 4}},
    "egress packages": {"task": "egress.tasks.build_packages", "schedule": 5.0, "options": {"expires": 4}},
    "purge": {"task": "purge.tasks.tick", "schedule": 5.0, "options": {"expires": 4}},
    "purge expired": {
        "task": "purge.tasks.purge_expired",
        "schedule": crontab.from_string(settings.PURGE_CRON),
        "options": {"expires": 3600},
    },
    "recount": {"task": "files.tasks.recount", "schedule": crontab(hour="3", minute="15"), "options": {"expires": 3600}},
    "differences": {
        "task": "purge.tasks.report_differences",
        "schedule": crontab(day_of_week="sun", hour="2", minute="0"),
        "options": {"expires": 3600},
    },
    "purge announced": {"task": "purge.tasks.announce", "schedule": crontab(minute="17"), "options": {"expires": 3000}},
    "tenants": {"task": "tenants.tasks.tick", "schedule": crontab(hour="3", minute="30"), "options": {"expires": 3600}},
}


@worker_init.connect
@beat_init.connect
def make_broker_folders(**_: Any) -> None:
    if settings.BROKER_URL.startswith("filesystem:"):
        for folder in ("data_folder_in", "control_folder"):
            Path(settings.CELERY_BROKER_TRANSPORT_OPTIONS[folder]).mkdir(parents=True, exist_ok=True)


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Keeps the logging that Django configured: Celery does not touch it if the signal has a receiver."""


@task_failure.connect
def log_failure(sender: Any, exception: BaseException, **_: Any) -> None:
    """Logs a failed task. Celery's own message is off (see LOGGING), because it contains the arguments of the exception."""
    logging.getLogger("strongroom.tasks").error("task failed", exc_info=exception, extra={"task": sender.name})
