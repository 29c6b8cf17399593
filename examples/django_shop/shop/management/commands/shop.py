"""`manage.py shop`: create tables and products, and run the site and a worker that is restarted when it dies."""

import signal
import subprocess
import sys
import threading
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import BaseCommand, call_command

from shop.models import Product

PRODUCTS = (("Green tea", "4.50", 100), ("Teapot", "29.00", 5), ("Golden spoon", "199.00", 0))


class Command(BaseCommand):
    help = "Run the shop: site and worker."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000")

    def handle(self, address: str, **_: Any) -> None:
        call_command("migrate", verbosity=0)
        if not Product.objects.exists():
            for name, price, left in PRODUCTS:
                Product.objects.create(name=name, price=price, left=left)
        if not User.objects.exists():
            User.objects.create_superuser("admin", password="admin")
        self.stdout.write(f"The shop is at http://{address}/, its sagas at http://{address}/admin/ (admin, admin)")
        self.stdout.write(f"The worker's process id is in {settings.DATA / 'worker.pid'}: try kill -9")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        worker = Worker()
        threading.Thread(target=worker.keep, daemon=True).start()
        # A separate process: it may end without notice, and the worker must not outlive it.
        site = subprocess.Popen(
            [sys.executable, "manage.py", "runserver", "--noreload", address], cwd=settings.BASE_DIR
        )
        try:
            site.wait()
        except KeyboardInterrupt:
            pass
        finally:
            worker.stop()
            _end(site)


class Worker:
    """Does what a supervisor does in production."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        options = ["-l", "WARNING", "-P", "threads", "-c", "4"]
        while not self._over.is_set():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "webshop", "worker", *options], cwd=settings.BASE_DIR
            )
            (settings.DATA / "worker.pid").write_text(str(self._process.pid))
            self._process.wait()
            self._over.wait(1)

    def stop(self) -> None:
        self._over.set()
        if self._process is not None:
            _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
