import fcntl
import gc
import http.client
import os
import signal
import socket
import sys
import time
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError, call_command
from django.utils import timezone

from config import demo
from config.processes import fork, run_module


STOP_TIMEOUT = 10.0  # seconds that the children have to finish their work; clients resume downloads and retry uploads
TICKS_AT_ONCE = 3  # in addition to packages, which take minutes and must not delay mails and deadlines
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Command(BaseCommand):
    help = (
        "Migrates the database, and serves http://127.0.0.1:$PORT with a Celery worker and beat, as bin/run does. "
        "If one of the three child processes ends, the command stops the others and exits with status 1."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        lock, listener = _lock_home(), _bind()
        url = settings.PUBLIC_URL or f"http://127.0.0.1:{settings.PORT}"
        # In a child, because later children would share the connections of this process.
        preparing = fork("prepare", partial(_prepare, url), closed=[lock, listener.fileno()])
        preparing.join()
        sys.exit(preparing.exitcode or self._supervise(lock, listener, url))

    def _supervise(self, lock: int, listener: socket.socket, url: str) -> int:
        awaited = {number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, awaited | {signal.SIGCHLD})
        children = _start(lock, listener)
        listener.close()
        is_announced = False
        while True:
            arrived = signal.sigtimedwait(awaited | {signal.SIGCHLD}, 3600 if is_announced else 0.1)
            if arrived and arrived.si_signo in awaited:
                return _stop(children, awaited)
            for name, child in children.items():
                if child.exitcode is not None:
                    # Do not restart it: that is the task of a supervisor, and a repeated crash must remain visible.
                    self.stderr.write(f"strongroom: {name} ended with status {child.exitcode}; stopping the other processes")
                    _stop(children, awaited)
                    return 1
            if not is_announced and _responds():
                is_announced = True
                self.stdout.write(f"\nStrongroom serves {url}. The API documentation is at /api/docs/. Ctrl-C stops the server.")
                if demo.path().exists():
                    self.stdout.write(demo.first_steps(url=url))
                self.stdout.flush()


def _prepare(url: str) -> None:
    call_command("prepare")
    demo.create(url=url, now=timezone.now())


def _lock_home() -> int:
    """Locks the installation for one server. Returns the descriptor, whose lock ends with this process."""
    handle = os.open(settings.HOME, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(f"Another bin/run serves {settings.HOME}. Stop it, or set another STRONGROOM_HOME.") from None
    return handle


def _bind() -> socket.socket:
    """Reserves the port. The web server listens on it, so that no client can connect before the server is ready."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", settings.PORT))
    except (OSError, OverflowError) as error:
        raise CommandError(
            f"Cannot serve on port {settings.PORT} ({error}). Try: PORT={settings.PORT % 60000 + 1} bin/run"
        ) from None
    return listener


def _start(lock: int, listener: socket.socket) -> dict[str, BaseProcess]:
    """Forks the children, which share the imported modules. Starting a new interpreter for each would take much longer."""
    os.chdir(settings.BASE_DIR)
    gc.freeze()  # so that garbage collection does not copy shared memory
    gunicorn = [
        *("--config", "config/gunicorn.conf.py", "--bind", f"fd://{listener.fileno()}"),
        *("--graceful-timeout", str(int(STOP_TIMEOUT / 2)), "config.wsgi"),
    ]
    celery = ["--app", "config.celery", "--quiet"]
    worker = [
        *(*celery, "worker", "--without-gossip", "--without-mingle", "--without-heartbeat"),
        *("--pool", "threads", "--concurrency", str(settings.EGRESS_PACKAGES_AT_ONCE + TICKS_AT_ONCE)),
    ]
    others = [lock, listener.fileno()]
    return {
        "the web server": fork("gunicorn", partial(run_module, "gunicorn", *gunicorn), closed=[lock]),
        "the Celery worker": fork("celery worker", partial(run_module, "celery", *worker), closed=others),
        "Celery beat": fork("celery beat", partial(run_module, "celery", *celery, "beat"), closed=others),
    }


def _responds() -> bool:
    server = http.client.HTTPConnection("127.0.0.1", settings.PORT, timeout=1)
    try:
        server.request("GET", "/healthz")
        server.getresponse().read()
    except OSError:
        return False
    finally:
        server.close()
    return True


def _stop(children: dict[str, BaseProcess], awaited: set[signal.Signals]) -> int:
    """Lets the children finish their work, until `STOP_TIMEOUT` or a second signal, and then kills them."""
    for child in children.values():
        child.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT
    while any(child.exitcode is None for child in children.values()) and time.monotonic() < deadline:
        arrived = signal.sigtimedwait(awaited | {signal.SIGCHLD}, 0.5)
        if arrived and arrived.si_signo in awaited:
            break
    for child in children.values():
        child.kill()
        child.join()
    return 0
