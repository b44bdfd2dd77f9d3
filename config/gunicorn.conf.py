"""Settings of gunicorn, for `bin/run` and for production: `gunicorn -c config/gunicorn.conf.py config.wsgi`."""

import os
import resource

from django.conf import settings

from config.processes import die_with_parent
from vault import stores


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
bind = f"0.0.0.0:{settings.PORT}"
workers = settings.WEB_WORKERS
threads = settings.WEB_THREADS
worker_class = "config.worker.Worker"
worker_connections = 4000  # most of them idle; `threads` limits the work
keepalive = 5
timeout = 60  # seconds; applies to the accept loop only, so a stream in a thread can take hours
graceful_timeout = settings.WEB_DRAIN_SECONDS
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
forwarded_allow_ips = ""  # BEHIND_PROXY in Django's settings decides whether X-Forwarded-Proto is trusted
control_socket_disable = True
accesslog = None  # config.logs.RequestLog logs requests; this log would contain paths
logger_class = "config.logs.ServerLog"


def on_starting(server: object) -> None:
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def post_fork(server: object, worker: object) -> None:
    die_with_parent()


def post_worker_init(worker: object) -> None:
    """Creates the S3 client of the vault, which takes 20 MiB and 200 ms, before the first request."""
    stores.get_store("vault").warm_up()
