"""gunicorn's settings, for `bin/run` and for production: `gunicorn -c config/gunicorn.conf.py config.wsgi`."""

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
worker_connections = 4000  # most of them idle; `threads` is what limits work
keepalive = 5
timeout = 60  # of the accept loop alone: a stream in a thread may last for hours
graceful_timeout = settings.WEB_DRAIN_SECONDS
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
forwarded_allow_ips = ""  # Django's BEHIND_PROXY alone decides whether X-Forwarded-Proto is believed
control_socket_disable = True
accesslog = None  # config.logs.RequestLog writes the request's line; this one would hold the path
logger_class = "config.logs.ServerLog"


def on_starting(server: object) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def post_fork(server: object, worker: object) -> None:
    die_with_parent()


def post_worker_init(worker: object) -> None:
    """The vault's client costs 20 MiB and 200 ms: at the start, not in front of somebody's first byte."""
    stores.get_store("vault").warm_up()
