"""The shop with one command: a web server, and a worker that is restarted whenever it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from werkzeug.serving import make_server

from examples.flask_shop import create_app, prepare

WORKER = (
    sys.executable, "-m", "celery", "-A", "examples.flask_shop.make_celery", "worker",
    "-P", "threads", "-c", "4", "-n", f"shop-{os.getpid()}@%h", "-l", "INFO", "--without-gossip", "--without-mingle",
)  # fmt: skip


class Worker:
    """Runs a worker and restarts it."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._process = subprocess.Popen(WORKER)
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            self._process.wait()
            if not self._stopping.wait(1):
                print("the worker ended; starting another one", flush=True)
                self._process = subprocess.Popen(WORKER)

    def stop(self) -> None:
        self._stopping.set()
        self._process.terminate()
        self._keeper.join(10)
        self._process.terminate()  # possibly a new one that was just started
        self._process.wait(10)


def main() -> None:
    """Serve until interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app = create_app()
    prepare(app)
    port = int(os.environ.get("PORT", "5000"))
    server = make_server("127.0.0.1", port, app, threaded=True)
    worker = Worker()
    print(f"The shop is open: http://127.0.0.1:{port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        worker.stop()


if __name__ == "__main__":
    main()
