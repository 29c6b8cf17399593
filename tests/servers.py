"""Real servers that the tests own, so that they can kill them: Redis, PostgreSQL, MariaDB, RabbitMQ, Kafka.

Each runs from the installed binary, on free ports of 127.0.0.1, with its data in a temporary folder that goes with it.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import ctypes
import glob
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import amqp
import psutil
import psycopg
import pymysql
import redis
from confluent_kafka.admin import AdminClient

_WHERE = (
    "/usr/lib/postgresql/*/bin",
    "/usr/sbin",
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/opt/*/bin",
    "/opt/homebrew/sbin",
    "/usr/local/opt/*/bin",
)
_FAKETIME = ("/usr/lib/*/faketime/libfaketime.so.1",)
_T = TypeVar("_T")
_AS_ROOT = os.geteuid() == 0

# A shell that waits for the end of its input, which is the end of the test process however that ends. Unlike a death
# signal it reaches a server that a script started, outlasts the thread that started it, and removes the folder.
_LEASH = (
    'read -r _; folder=$1; shift; [ $# -eq 0 ] || kill -s KILL -- "$@"; sleep 1; '
    'if mountpoint -q "$folder/data"; then umount "$folder/data"; fi; rm -rf "$folder"'
)


class MissingServer(RuntimeError):
    """A server that the tests need is not installed."""


def binary(name: str) -> str:
    folders = [folder for pattern in _WHERE for folder in sorted(glob.glob(pattern), reverse=True)]
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    if found is None:
        raise MissingServer(f"{name} is not installed; run `make servers`")
    return found


def free_port() -> int:
    """Return a port outside the range that the kernel gives to clients.

    From that range the kernel may give the port of a dead server to anyone who asks for any port, and then the server
    cannot have it back.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # not from random: hypothesis seeds that, alike in all workers
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def die_with_parent() -> None:
    """In a child: end when the test process ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait_for(condition: Callable[[], Any], timeout: float = 60.0, what: str = "", pause: float = 0.05) -> Any:
    """Wait until `condition` returns something true, and return that."""
    give_up = time.monotonic() + timeout
    while True:
        if result := condition():
            return result
        if time.monotonic() > give_up:
            raise TimeoutError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(pause)


def at_once(times: int, do: Callable[[], _T]) -> list[_T]:
    """Do it so many times at the same moment, each in a thread."""
    ready = threading.Barrier(times)

    def one(_: int) -> _T:
        ready.wait(30)
        return do()

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(one, range(times)))


class Clock:
    """A wall clock that can be stepped, for processes that are started with its environment (libfaketime).

    Their monotonic clock goes on, as it would.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock"
        self.step(0)

    def step(self, seconds: int) -> None:
        """Set it so far before, or after, the machine's clock."""
        draft = self.file.with_suffix(".new")
        draft.write_text(f"{seconds:+}")
        draft.replace(self.file)

    def environment(self) -> dict[str, str]:
        found = [file for pattern in _FAKETIME for file in glob.glob(pattern)]
        if not found:
            raise MissingServer("libfaketime is not installed; run `make servers`")
        return {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


class Disk:
    """A file system of its own, in memory, so small that it can be filled. To mount it takes root, or `sudo -n`."""

    def __init__(self, folder: Path, megabytes: int, owner: str) -> None:
        self.folder = folder
        self.options = f"size={megabytes}m,mode=700" + (
            f",uid={owner},gid={owner}" if _AS_ROOT else f",uid={os.getuid()}"
        )
        self._sudo = [] if _AS_ROOT else ["sudo", "-n"]

    def mount(self) -> None:
        self.folder.mkdir()
        subprocess.run([*self._sudo, "mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.folder)], check=True)

    def unmount(self) -> None:
        subprocess.run([*self._sudo, "umount", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(65_536))

    def empty(self) -> None:
        (self.folder / "ballast").unlink()


class Server:
    """A server process in a folder of its own."""

    grace: ClassVar[int] = signal.SIGTERM  #: what asks it to end in order
    user: ClassVar[str | None] = None  #: who runs it when the tests are run by root

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sagas-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._leash: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        if _AS_ROOT and self.user:
            shutil.chown(self.folder, self.user)
        atexit.register(self._at_exit)
        self._tie()

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def prepare(self) -> None:
        """Make the data folder, before the first start."""

    def ping(self) -> None:
        """Raise unless the server answers."""
        raise NotImplementedError

    def start(self) -> Self:
        if not (self.folder / "prepared").exists():
            self.prepare()
            (self.folder / "prepared").touch()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env={**os.environ, **self.environment()},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self._as_user(),
            )
        self._tie()
        try:
            wait_for(self._answers, what=f"{type(self).__name__} answers")
        except TimeoutError as error:
            raise RuntimeError(f"{error}\n{(self.folder / 'log').read_text()[-2000:]}") from None
        return self

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"{type(self).__name__} ended\n{(self.folder / 'log').read_text()[-2000:]}")
        try:
            self.ping()
        except Exception:  # whatever a client raises while the server starts
            return False
        return True

    def supervised(self) -> bool:
        """Start it if it has ended, as a supervisor would. Tells whether it answers."""
        if self.process is None or self.process.poll() is not None:
            with contextlib.suppress(RuntimeError):
                self.start()
        try:
            return self._answers()
        except RuntimeError:
            return False

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _as_user(self) -> dict[str, Any]:
        return {"user": self.user, "group": self.user, "extra_groups": []} if _AS_ROOT and self.user else {}

    def run(self, *command: str) -> None:
        subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, **self.environment()}, **self._as_user()
        )

    def _tree(self) -> list[psutil.Process]:
        """The server and its descendants: the backends of PostgreSQL leave its process group."""
        if self.process is None or self.process.poll() is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def _freeze(self) -> set[psutil.Process]:
        frozen: set[psutil.Process] = set()
        while new := [process for process in self._tree() if process not in frozen]:  # some are born meanwhile
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            frozen.update(new)
        return frozen

    def _tie(self, *pids: int) -> None:
        """Have these processes, or else the groups of ours, end with the test process; and the folder."""
        self._untie()
        targets = pids or [-process.pid for process in self.processes() if process.poll() is None]
        command = ["/bin/sh", "-c", _LEASH, "leash", str(self.folder), *map(str, targets)]
        self._leash = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _untie(self) -> None:
        if self._leash is not None:
            with self._leash as leash:
                leash.kill()
            self._leash = None

    def processes(self) -> list[subprocess.Popen[bytes]]:
        return [self.process] if self.process else []

    def pause(self) -> None:
        self._tie(*(process.pid for process in self._freeze()))  # what is frozen does not notice its parent's death

    def resume(self) -> None:
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._tie()

    def kill(self) -> None:
        """End it at once, as a power cut would: all of it, so that no backend finishes what it had begun."""
        tree = self._freeze()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait(30)
        # PostgreSQL refuses to start beside what is left of it.
        wait_for(lambda: not any(map(_alive, tree)), 30, "the killed processes are gone", 0.002)

    def restart(self) -> None:
        """Start it again, on the same port and data. It is killed first if it still runs."""
        self.kill()
        self.start()

    def discard(self) -> None:
        """End it for good. Its data are not needed any more."""
        self.kill()

    def stop(self) -> None:
        self.discard()
        self._untie()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        if os.getpid() == self._owner:  # not in a fork, whose exit is not the end of the tests
            self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Redis(Server):
    def __init__(self, *, durable: bool = False) -> None:
        super().__init__()
        self.durable = durable

    def command(self) -> Sequence[str]:
        return [
            binary("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--dir", str(self.folder), "--appendonly", "yes" if self.durable else "no", "--appendfsync", "always",
        ]  # fmt: skip

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def ping(self) -> None:
        with self.client() as client:
            client.ping()

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class Postgres(Server):
    user = "postgres"  # PostgreSQL refuses to be run by root
    grace = signal.SIGINT  # fast shutdown: does not wait for clients

    def __init__(self, *, fsync: bool = False, stepped: bool = False, megabytes: int | None = None) -> None:
        super().__init__()
        self.fsync = fsync
        self.disk = Disk(self.folder / "data", megabytes, self.user) if megabytes else None
        self.clock = Clock(self.folder) if stepped else None
        self._databases = 0

    def environment(self) -> dict[str, str]:
        return self.clock.environment() if self.clock else {}

    def prepare(self) -> None:
        if self.disk:
            self.disk.mount()
        self.run(
            binary("initdb"), "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--no-sync", "--wal-segsize=1" if self.disk else "--wal-segsize=16",
        )  # fmt: skip

    def command(self) -> Sequence[str]:
        return [
            binary("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder),
            "-c", "listen_addresses=127.0.0.1", "-c", f"fsync={'on' if self.fsync else 'off'}", "-c", "max_connections=300",
        ]  # fmt: skip

    def discard(self) -> None:
        if self.disk is None and self.process is not None and self.process.poll() is None:
            self.resume()
            self.process.send_signal(signal.SIGQUIT)  # at once as well, but it gives its shared memory back
            self.process.wait(20)
        self.kill()
        if self.disk:
            self.disk.unmount()

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True, connect_timeout=5
        )

    def ping(self) -> None:
        with self.connect() as connection:
            connection.execute("select 1")

    def database(self) -> str:
        """Create an empty database and return its URL."""
        self._databases += 1
        with self.connect() as connection:
            connection.execute(f"create database t{self._databases}")  # type: ignore[arg-type, unused-ignore]
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/t{self._databases}"


class PgBouncer(Server):
    """A pooler in front of a PostgreSQL. The clients of a pool share few connections to it."""

    user = "postgres"  # it refuses to be run by root

    def __init__(self, postgres: Postgres, *, mode: str = "transaction", size: int = 5) -> None:
        super().__init__()
        self.postgres = postgres
        self._settings = {
            "listen_addr": "127.0.0.1", "listen_port": self.port, "unix_socket_dir": "", "auth_type": "any",
            "pool_mode": mode, "default_pool_size": size, "max_client_conn": 500, "server_login_retry": 1,
        }  # fmt: skip

    def prepare(self) -> None:
        lines = [f"{name} = {value}" for name, value in self._settings.items()]
        target = f"* = host=127.0.0.1 port={self.postgres.port} user=postgres"
        (self.folder / "pgbouncer.ini").write_text("\n".join(["[databases]", target, "[pgbouncer]", *lines]) + "\n")

    def command(self) -> Sequence[str]:
        return [binary("pgbouncer"), str(self.folder / "pgbouncer.ini")]

    def ping(self) -> None:
        psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", connect_timeout=5).close()

    def database(self) -> str:
        """Create an empty database and return its URL, through the pooler."""
        return self.postgres.database().replace(f":{self.postgres.port}/", f":{self.port}/")


class MariaDB(Server):
    def __init__(self) -> None:
        super().__init__()
        self._databases = 0

    def _user_option(self) -> list[str]:
        return ["--user=root"] if _AS_ROOT else []

    def prepare(self) -> None:
        # Its temporary tables are named after no process: of two servers in one folder each would remove the other's.
        (self.folder / "tmp").mkdir()
        self.run(
            binary("mariadb-install-db"), "--no-defaults", f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder / 'tmp'}", "--auth-root-authentication-method=normal", "--skip-test-db", *self._user_option(),
            "--rpm",  # leaves the owner of the system's plugins alone
        )  # fmt: skip

    def command(self) -> Sequence[str]:
        return [
            binary("mariadbd"), "--no-defaults", f"--datadir={self.folder / 'data'}", f"--port={self.port}",
            "--bind-address=127.0.0.1", f"--socket={self.folder / 's'}", f"--pid-file={self.folder / 'pid'}",
            f"--tmpdir={self.folder / 'tmp'}",
            "--character-set-server=utf8mb4",  # as Debian ships it; the default is latin1
            # To the system at each commit, so that a commit survives a kill; 0 would lose the last second.
            "--innodb-flush-log-at-trx-commit=2",
            # A killed server loses nothing that it gave to the system; only a machine without power would.
            "--debug-no-sync=1", *self._user_option(),
        ]  # fmt: skip

    def connect(self) -> Any:
        return pymysql.connect(host="127.0.0.1", port=self.port, user="root", connect_timeout=5, read_timeout=20)

    def ping(self) -> None:
        self.connect().close()

    def database(self) -> str:
        self._databases += 1
        with contextlib.closing(self.connect()) as connection:
            connection.cursor().execute(f"create database t{self._databases}")
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/t{self._databases}?charset=utf8mb4"


class RabbitMQ(Server):
    def __init__(self) -> None:
        self._mapper: subprocess.Popen[bytes] | None = None
        super().__init__()
        self.distribution_port, self.epmd_port = free_port(), free_port()

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # The script then becomes the server: `process` is the node, not a shell that waits for it.
            "RUNNING_UNDER_SYSTEMD": "true",
            # A port mapper of its own, that goes with the node.
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": str(self.folder / "crash"),
        }

    def prepare(self) -> None:
        (self.folder / "plugins").write_text("[].\n")
        self._mapper = subprocess.Popen(
            [binary("epmd"), "-port", str(self.epmd_port), "-address", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._tie()
        wait_for(self._mapped, 10, "epmd answers", 0.01)  # else the node starts another, which outlives it

    def _mapped(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.epmd_port)) == 0

    def processes(self) -> list[subprocess.Popen[bytes]]:
        return super().processes() + ([self._mapper] if self._mapper else [])

    def command(self) -> Sequence[str]:
        # The wrapper in /usr/sbin insists on the rabbitmq user; the script behind it does not.
        script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        return [str(script) if script.exists() else binary("rabbitmq-server")]

    def ping(self) -> None:
        with amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=2, read_timeout=5) as connection:
            connection.connect()

    def control(self, *arguments: str) -> None:
        """Run `rabbitmqctl`."""
        script = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")
        self.run(str(script) if script.exists() else binary("rabbitmqctl"), *arguments)

    def has_saved(self, queue: str) -> bool:
        """Tell whether it would still know a quorum queue after a kill: it notes new ones within a second.

        The file of their names is Erlang's DETS: a mark at its beginning says that it is closed, or was saved.
        """
        files = (self.folder / "mnesia").glob("*/quorum/*/names.dets")
        return any(text[8:12] == b"\0\0\0\1" and queue.encode() in text for text in map(Path.read_bytes, files))

    def virtual_host(self, name: str) -> str:
        """Return the URL of a new virtual host, in which no other test has left anything."""
        self.control("add_vhost", name)
        self.control("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")
        return self.url.removesuffix("/") + name

    def forget(self, queue: str) -> None:
        """Delete a queue with all that is in it, if it is there."""
        with amqp.Connection(f"127.0.0.1:{self.port}", connect_timeout=5, read_timeout=20) as connection:
            connection.connect()
            connection.channel().queue_delete(queue)

    def stop(self) -> None:
        super().stop()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


class Kafka(Server):
    """One node that is broker and controller, run from Kafka's own jars, which `scripts/install-servers` fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.controller_port = free_port()

    def _java(self, program: str, *arguments: str) -> list[str]:
        pom = Path(__file__).parent.parent / "scripts" / "kafka" / "pom.xml"
        found = re.search("^  <version>(.*)</version>", pom.read_text(), re.MULTILINE)
        assert found is not None
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jars = cache / "celery-sagas" / f"kafka-{found[1]}"
        if not jars.is_dir():
            raise MissingServer(f"Kafka {found[1]} is not in {jars}; run `make servers` (it needs Java 17 and Maven)")
        return [
            binary("java"), "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", f"{jars}/*", program, *arguments,
        ]  # fmt: skip

    def prepare(self) -> None:
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.folder / "data",
            "num.network.threads": 2,
            "num.io.threads": 2,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # As on a cluster where somebody takes care: nothing is made by the mere mention of its name.
            "auto.create.topics.enable": "false",
            # So that the tests need not wait.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 500,
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 3000,
        }
        file = self.folder / "settings"
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        # Its name is base64 of 16 bytes, but one that began with a "-" would be read as an option.
        cluster = base64.urlsafe_b64encode(b"k" + secrets.token_bytes(15)).decode().rstrip("=")
        self.run(*self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(file)))

    def command(self) -> Sequence[str]:
        return self._java("kafka.Kafka", str(self.folder / "settings"))

    def ping(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), 1):
            pass  # a client would log each vain attempt
        AdminClient({"bootstrap.servers": self.address}).list_topics(timeout=5)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"
