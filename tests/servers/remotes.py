"""Real servers for DVC remotes, on free ports of this machine, as the current user: started, killed, started again."""

import base64
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import psutil

from tests.committed import REPOSITORY

USER, PASSWORD = "align", "planted-password-7b1c"
ACCESS_KEY, SECRET_KEY = "PLANTEDKEYID93", "planted-secret-key-41fe"
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/lib/openssh"
START_SECONDS = 30


class Server(ABC):
    """A server that keeps its objects below `data`, and how a DVC project gets to it."""

    name: str
    remote: str  # its name in docs/SHARING.md
    heading: str  # of its section there
    env: ClassVar[dict[str, str]] = {}
    secrets: tuple[str, ...] = ()  # what may be nowhere but in `.dvc/config.local` and the environment

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.log = folder / "log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return what starts it in the foreground."""

    @property
    @abstractmethod
    def examples(self) -> dict[str, str]:
        """What stands for what in the commands of docs/SHARING.md."""

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=os.environ | {"PATH": SYSTEM_PATH} | self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < end, f"{self.name} does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it with all that it has started, as a power cut would."""
        if self.process is None or self.process.poll() is not None:
            return
        parent = psutil.Process(self.process.pid)
        family = [parent, *parent.children(recursive=True)]
        for process in family:
            process.send_signal(signal.SIGSTOP)  # no one of them may notice that another has gone, and tidy up
        for process in family:
            process.kill()
        self.process.wait()
        psutil.wait_procs(family)
        self.process = None

    def stop(self) -> None:
        """End it for good."""
        self.kill()

    def stored(self) -> int:
        """Return the bytes that lie below `data`, of whole and of half files."""
        return sum(size_of(path) for path in self.data.rglob("*"))

    @property
    def store(self) -> Path:
        """The folder of the remote."""
        return self.data / "store"

    def objects(self) -> list[Path]:
        """Return all files that have an object's name."""
        return [path for path in self.store.glob("files/md5/??/*") if len(path.stem) == 30]

    @contextmanager
    def damaging(self, oid: str) -> Iterator[Path]:
        """Let the file in which an object lies be changed, as a failing disk does it: its mode stays."""
        path = self.store / "files/md5" / oid[:2] / oid[2:]
        mode = path.stat().st_mode
        path.chmod(0o644)
        yield path
        if path.exists():
            path.chmod(mode)

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


class Ssh(Server):
    """OpenSSH, with a key."""

    name, remote, heading = "ssh", "ssh", "SSH"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for key in ("host_key", "id_ed25519"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        self.secrets = ("".join((folder / "id_ed25519").read_text().splitlines()[1:-1])[60:120],)
        shutil.copyfile(folder / "id_ed25519.pub", folder / "authorized_keys")
        (folder / "authorized_keys").chmod(0o600)
        config = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": folder / "host_key",
            "PidFile": "none",
            "AuthorizedKeysFile": folder / "authorized_keys",
            "StrictModes": "no",  # the temporary folder's parents are others'
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "Subsystem": "sftp internal-sftp",
        }
        (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))

    def command(self) -> list[str]:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(
                exist_ok=True
            )  # where it goes before it knows the user; the package's service makes it
        sshd = shutil.which("sshd", path=SYSTEM_PATH)
        assert sshd, "openssh-server is not installed"
        return [sshd, "-D", "-e", "-f", str(self.folder / "sshd_config")]

    @property
    def examples(self) -> dict[str, str]:
        user = pwd.getpwuid(os.getuid()).pw_name
        return {
            "user@host.example:22/srv": f"{user}@127.0.0.1:{self.port}{self.data}",
            "~/.ssh/id_ed25519": f"{self.folder}/id_ed25519",
        }


class S3(Server):
    """nanio: buckets are folders, objects are files."""

    name, remote, heading = "s3", "s3", "S3"
    env: ClassVar[dict[str, str]] = {"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY}
    secrets = (ACCESS_KEY, SECRET_KEY)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self.data / "bucket").mkdir()

    @property
    def store(self) -> Path:
        return self.data / "bucket/store"

    @contextmanager
    def damaging(self, oid: str) -> Iterator[Path]:
        with super().damaging(oid) as path:
            yield path
        # It notes the size beside the file; without the note it looks.
        (self.data / f"bucket/.nanio-meta/store/files/md5/{oid[:2]}/{oid[2:]}.json").unlink()

    def command(self) -> list[str]:
        where = ["--data-dir", str(self.data), "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "nanio", "serve", *where]

    @property
    def examples(self) -> dict[str, str]:
        return {
            "https://s3.example:9000": f"http://127.0.0.1:{self.port}",
            "ID=KEY": f"ID={ACCESS_KEY}",
            "KEY=SECRET": f"KEY={SECRET_KEY}",
        }


class WebDav(Server):
    """What both WebDAV servers have in common."""

    remote, heading = "webdav", "WebDAV"
    secrets = (PASSWORD,)

    @property
    def examples(self) -> dict[str, str]:
        return {
            "webdavs://host.example": f"webdav://127.0.0.1:{self.port}",
            "user USER": f"user {USER}",
            "password PASSWORD": f"password {PASSWORD}",
        }


class Apache(WebDav):
    """Apache's mod_dav. Started by root it becomes another user, who must get to the folder."""

    name = "webdav"
    modules = ("mpm_event", "authn_core", "authn_file", "authz_core", "authz_user", "auth_basic", "dav", "dav_fs")

    def __init__(self, folder: Path) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="align-dav-")) / "server")
        self.folder.parent.chmod(0o755)
        self.store.mkdir()
        digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
        (self.folder / "users").write_text(f"{USER}:{{SHA}}{digest}\n")
        root = os.getuid() == 0
        lines = [
            f"ServerRoot {self.folder}",
            "ServerName 127.0.0.1",
            f"Listen 127.0.0.1:{self.port}",
            f"PidFile {self.folder}/pid",
            f"ErrorLog {self.folder}/error_log",
            f"DocumentRoot {self.data}",
            f"DavLockDB {self.data}/.lock",
            *(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in self.modules),
            *(["User www-data", "Group www-data"] if root else []),
            f"<Directory {self.data}>",
            "Dav On",
            "AuthType Basic",
            "AuthName store",
            f"AuthUserFile {self.folder}/users",
            "Require valid-user",
            "</Directory>",
        ]
        (self.folder / "apache.conf").write_text("\n".join(lines) + "\n")
        if root:
            run("chown", "-R", "www-data:www-data", str(self.folder))

    def command(self) -> list[str]:
        (self.folder / "pid").unlink(missing_ok=True)
        apache = shutil.which("apache2", path=SYSTEM_PATH)
        assert apache, "apache2 is not installed"
        return [apache, "-f", str(self.folder / "apache.conf"), "-D", "FOREGROUND"]

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.folder.parent)


class WsgiDav(WebDav):
    """WsgiDAV, which writes under the final name from the first byte on."""

    name = "wsgidav"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store.mkdir()
        users = {"*": {USER: {"password": PASSWORD}}}
        config = {
            "host": "127.0.0.1",
            "port": self.port,
            "server": "cheroot",
            "provider_mapping": {"/": str(self.data)},
            "simple_dc": {"user_mapping": users},
            "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        }
        (folder / "config.json").write_text(json.dumps(config))

    def command(self) -> list[str]:
        return [sys.executable, "-m", "wsgidav.server.server_cli", "--config", str(self.folder / "config.json")]


class Local(Server):
    """A folder of this machine, or one that is mounted: there is no server."""

    name, remote, heading = "local", "local", "Local folder"

    def command(self) -> list[str]:
        return []

    def start(self) -> None:
        """Start nothing."""

    @property
    def examples(self) -> dict[str, str]:
        return {"/mnt": str(self.data)}


SERVERS: dict[str, type[Server]] = {server.name: server for server in (Local, Ssh, S3, Apache, WsgiDav)}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def size_of(path: Path) -> int:
    """Return a file's size in bytes; of what has gone or is no file, 0."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def run(*command: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PATH": SYSTEM_PATH})


def commands_of(heading: str) -> list[str]:
    """Return the lines of the first block of commands below a heading of docs/SHARING.md."""
    text = (REPOSITORY / "docs/SHARING.md").read_text(encoding="utf-8")
    match = re.search(rf"^##+ {heading}\n(?:(?!#).*\n)*?```sh\n((?:.*\n)*?)```", text, re.M)
    assert match, heading
    return match[1].splitlines()
