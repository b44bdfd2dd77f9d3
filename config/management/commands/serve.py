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


STOPPING = 10.0  # seconds that the children have for what is going on; clients resume, uploads are tried again
TICKS_AT_ONCE = 3  # beside packages, which take minutes: mails and deadlines do not wait for them
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Command(BaseCommand):
    help = (
        "Brings the database up to date and serves http://127.0.0.1:$PORT with a Celery worker and beat, as bin/run does. "
        "The three are children of this process: when one of them ends, all end, with exit code 1."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        lock, listener = _hold_home(), _bind()
        url = settings.PUBLIC_URL or f"http://127.0.0.1:{settings.PORT}"
        # In a child, because connections that this process had made would be those of its other children, too.
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
                    # Not started again here: whoever started us does that, and a crash that repeats stays visible.
                    self.stderr.write(f"strongroom: {name} ended with {child.exitcode}; stopping everything")
                    _stop(children, awaited)
                    return 1
            if not is_announced and _answers():
                is_announced = True
                self.stdout.write(f"\nStrongroom serves {url} with its API pages at /api/docs/. Ctrl-C stops it.")
                if demo.path().exists():
                    self.stdout.write(demo.first_steps(url=url))
                self.stdout.flush()


def _prepare(url: str) -> None:
    call_command("prepare")
    demo.create(url=url, now=timezone.now())


def _hold_home() -> int:
    """One installation, one server: the lock goes with the descriptor that this returns, and so with this process."""
    handle = os.open(settings.HOME, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(f"another bin/run serves {settings.HOME}: stop it, or set another STRONGROOM_HOME") from None
    return handle


def _bind() -> socket.socket:
    """Bound here and listened on by the web server, so that nobody connects before it is there and nobody else gets the port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", settings.PORT))
    except (OSError, OverflowError) as error:
        raise CommandError(
            f"cannot serve on port {settings.PORT} ({error}): try PORT={settings.PORT % 60000 + 1} bin/run"
        ) from None
    return listener


def _start(lock: int, listener: socket.socket) -> dict[str, BaseProcess]:
    """All have what this process has imported: to start another Python for each took most of the time of a start."""
    os.chdir(settings.BASE_DIR)
    gc.freeze()  # memory that nothing collects stays shared
    gunicorn = [
        *("--config", "config/gunicorn.conf.py", "--bind", f"fd://{listener.fileno()}"),
        *("--graceful-timeout", str(int(STOPPING / 2)), "config.wsgi"),
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


def _answers() -> bool:
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
    """Lets what is going on come to an end, unless it takes long or the signal comes again."""
    for child in children.values():
        child.terminate()
    deadline = time.monotonic() + STOPPING
    while any(child.exitcode is None for child in children.values()) and time.monotonic() < deadline:
        arrived = signal.sigtimedwait(awaited | {signal.SIGCHLD}, 0.5)
        if arrived and arrived.si_signo in awaited:
            break
    for child in children.values():
        child.kill()
        child.join()
    return 0
