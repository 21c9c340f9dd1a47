"""Who may do what on a node: users, workers, the daemon itself."""

from __future__ import annotations

from .conftest import CACHE, MODEL, MODEL_FILES, SERVICE, Node

LOAD = """
import sys
from craftcache import Client
with Client(fallback="none") as client:
    export = client.load(sys.argv[1])
print(export.served_by, sum(tensor.numel() for tensor in export.lm["best_state"].values()))
"""

CURL = ("curl", "--silent", "--show-error", "--unix-socket", "/run/craftcache/craftcache.sock")
STATUS = (*CURL, "--fail", "http://craftcached/v1/status")


def test_a_worker_of_another_user_loads(node: Node) -> None:
    with node.client() as client:
        client.warm(["org/model"])
    loaded = node.python("worker", LOAD, "org/model")
    assert (loaded.stdout, loaded.stderr) == ("daemon 64\n", "")


def test_a_user_outside_the_group_may_not_administer(node: Node) -> None:
    refused = node.as_user("worker", *STATUS)
    assert refused.returncode == 7
    assert "Permission denied" in refused.stderr or "Couldn't connect" in refused.stderr
    assert "may not use" in node.craftcache("rm", MODEL, user="worker").stderr
    node.machine.run("usermod", "--append", "--groups=craftcache", "worker")
    assert node.as_user("worker", *STATUS).returncode == 0


def test_members_may_look_and_only_administrators_remove(node: Node) -> None:
    node.machine.run("usermod", "--append", "--groups=craftcache", "worker")
    delete = (*CURL, "--request", "DELETE", f"http://craftcached/v1/models/{MODEL}")
    assert "PolicyDenied" in node.as_user("worker", *delete).stdout
    node.machine.run("groupadd", "--system", "ml-admins")
    node.machine.run("usermod", "--append", "--groups=ml-admins", "worker")
    node.machine.write("/etc/craftcache/config.toml", 'admin_group = "ml-admins"\n')
    node.machine.systemctl("reload", SERVICE)
    node.machine.wait_journal(SERVICE, "reloaded: admin_group")
    assert "freed_bytes" in node.as_user("worker", *delete).stdout


def test_a_drop_in_lets_administrators_connect(node: Node) -> None:
    node.machine.run("groupadd", "--system", "ml-admins")
    node.machine.run("usermod", "--append", "--groups=ml-admins", "worker")
    node.machine.write("/etc/craftcache/config.toml", 'admin_group = "ml-admins"\n')
    node.machine.systemctl("restart", SERVICE)
    assert node.as_user("worker", *STATUS).returncode == 7
    named = "admin_group is ml-admins, and its members may not connect"
    assert named in node.craftcache("doctor", user="worker").stdout
    install_drop_in(node, "admin-group.conf", "craftcache.socket")
    node.machine.systemctl("restart", "craftcache.socket", SERVICE)
    assert named not in node.craftcache("doctor", user="worker").stdout
    delete = (*CURL, "--request", "DELETE", f"http://craftcached/v1/models/{MODEL}")
    assert "freed_bytes" in node.as_user("worker", *delete).stdout


def test_a_drop_in_leaves_loading_to_the_group(node: Node) -> None:
    install_drop_in(node, "workers-by-group.conf", "craftcache.socket")
    node.machine.systemctl("restart", "craftcache.socket")
    refused = node.python("worker", LOAD, MODEL)
    assert "Permission denied" in refused.stderr
    node.machine.run("usermod", "--append", "--groups=craftcache", "worker")
    assert node.python("worker", LOAD, MODEL).stdout.startswith("daemon ")


def test_workers_may_read_the_cache_and_not_write_to_it(node: Node) -> None:
    files = node.as_user("worker", "find", CACHE, "-type", "f", "-readable")
    assert files.stdout.count("/blobs/") >= 2
    writable = node.as_user("worker", "find", CACHE, "-writable", "!", "-type", "l")
    assert (writable.stdout, writable.stderr.count("Permission denied")) in (
        ("", count)
        for count in range(3)  # private directories are not even to be looked into
    )
    assert node.as_user("worker", "touch", f"{CACHE}/mine").returncode == 1


def test_not_even_root_in_a_container_can_write_by_a_descriptor(node: Node) -> None:
    code = """
import errno, os, pathlib
from craftcache.daemon.client import DaemonClient
from craftcache.sources import parse
from craftcache.daemon.transport import Call
from craftcache.wire import Load
daemon = DaemonClient(pathlib.Path("/run/craftcache"), lambda _: 15.0)
loaded = daemon.handle(Load(parse("facebook/musicgen-small")), Call())
for file in loaded.files:
    try:
        os.open(f"/proc/self/fd/{file.descriptor}", os.O_WRONLY)
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert node.python("root", code).stdout == "EROFS\nEROFS\n"


def test_the_daemon_itself_may_write_to_its_own_directories_alone(node: Node) -> None:
    code = """
import os, sys
found = [d for d, _, _ in os.walk("/") if not d.startswith(("/proc", "/sys", "/dev"))]
for directory in found:
    if os.access(directory, os.W_OK):
        print(os.path.join("/", *directory.split("/")[:4]))
print("looked everywhere", flush=True)
"""
    node.machine.write("/srv/look.py", code)
    node.machine.drop_in(
        SERVICE,
        "[Service]\nType=exec\nRestart=no\nSockets=\n"
        "ExecStart=\nExecStart=/opt/craftcache/bin/python /srv/look.py\n",
    )
    node.machine.systemctl("start", SERVICE)
    node.machine.wait_journal(SERVICE, "looked everywhere")
    lines = node.machine.journal(SERVICE).splitlines()
    writable = {line for line in lines if line.startswith("/") and ":" not in line}
    assert writable == {CACHE, "/tmp", "/var/lib/craftcache", "/var/tmp"}


def test_what_inspects_a_file_is_without_the_network_in_the_daemons_sandbox(node: Node) -> None:
    code = """
import socket
from craftcached.inspect.confine import confine, leave_network
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname()).close()
leave_network()
confine(cpu_seconds=2, file_bytes=1 << 26)
try:
    socket.create_connection(listener.getsockname())
except OSError as error:
    print("refused:", error.strerror, flush=True)
else:
    print("not refused", flush=True)
"""
    node.machine.write("/srv/reach.py", code)
    node.machine.drop_in(
        SERVICE,
        "[Service]\nType=exec\nRestart=no\nSockets=\n"
        "ExecStart=\nExecStart=/opt/craftcache/bin/python /srv/reach.py\n",
    )
    node.machine.systemctl("start", SERVICE)
    said = node.machine.wait_journal(SERVICE, "refused")
    assert said == "refused: Operation not permitted\n"  # by the filter: namespaces are forbidden


def test_the_token_is_a_credential_that_no_other_user_sees(node: Node) -> None:
    node.hub.repo("org/private", private=True).commit(
        {"state_dict.bin": b"no checkpoint", "compression_state_dict.bin": b"neither"}
    )
    node.hub.grant("hf_secret", "org/private")
    assert "no such repository" in node.craftcache("warm", "org/private").stderr
    node.machine.write("/etc/credstore/hf-token", "hf_secret\n", mode=0o600)
    node.machine.systemctl("restart", SERVICE)
    # Further than before: it is found, fetched and refused for what it is.
    refused = node.craftcache("warm", "org/private").stderr
    assert "it is text, beginning with" in refused
    with node.client() as client:
        assert client.status().has_token is True
    secret = f"/run/credentials/{SERVICE}/hf-token"
    assert node.as_user("worker", "cat", secret).returncode != 0
    assert "hf_secret" not in node.machine.run("cat", f"/proc/{node.main_pid()}/environ").stdout
    assert "hf_secret" not in node.machine.journal(SERVICE)


def test_a_drop_in_takes_the_token_from_elsewhere(node: Node) -> None:
    node.machine.write("/etc/craftcache/hf-token", "hf_secret\n", mode=0o600)
    install_drop_in(node, "hub-token.conf", SERVICE)
    with node.client() as client:
        assert client.status().has_token is True


def test_a_drop_in_puts_the_cache_on_another_disk(node: Node) -> None:
    node.machine.run("install", "-d", "-o", "craftcache", "-g", "craftcache", "/data/craftcache")
    node.machine.write("/etc/craftcache/config.toml", 'cache_dir = "/data/craftcache"\n')
    install_drop_in(node, "another-disk.conf", SERVICE)
    with node.client() as client:
        client.warm(["org/model"])
        assert client.status().cache_dir == "/data/craftcache"
    assert node.python("worker", LOAD, "org/model").stdout == "daemon 64\n"
    assert node.machine.path("/data/craftcache/models--org--model").is_dir()
    assert "FAIL" not in node.craftcache("doctor", user="worker").stdout.replace(
        "FAIL  administration", ""
    )


def test_a_drop_in_lets_the_daemon_watch_what_only_a_group_may_read(node: Node) -> None:
    directory = "/home/alice/run-1"
    node.machine.run("groupadd", "research")
    node.machine.run("install", "-d", "-m", "2750", "-g", "research", "/home/alice", directory)
    for name, content in MODEL_FILES.items():
        (node.machine.path(directory) / name).write_bytes(content)
    node.machine.run("chmod", "-R", "o-rwx", directory)
    node.machine.run("chgrp", "-R", "research", directory)
    watch = f'[[watches]]\nname = "run-1"\ndirectory = "{directory}"\nsettle = 0.1\n'
    node.machine.write("/etc/craftcache/config.toml", watch)
    install_drop_in(node, "private-exports.conf", SERVICE)
    node.machine.systemctl("start", SERVICE)
    node.machine.wait_journal(SERVICE, "watch run-1: generation 1 is served")
    assert node.python("worker", LOAD, "watch:run-1").stdout == "daemon 64\n"
    assert node.as_user("worker", "ls", directory).returncode != 0


def install_drop_in(node: Node, name: str, unit: str) -> None:
    """As the drop-in's own comment says."""
    source = f"/opt/craftcache/share/craftcache/systemd/drop-ins/{name}"
    node.machine.run("install", "-Dm644", source, f"/etc/systemd/system/{unit}.d/{name}")
    node.machine.systemctl("daemon-reload")
