"""A worker as in a container, run as a script: loads by the socket alone, then tries to write.

Arguments: the socket directory, and the uid to become. Prints a JSON object.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path

# Everything now: another user may not be able to read the interpreter's own files.
import craftcache.checkpoint.tensors
import craftcache.checkpoint.weights_only  # noqa: F401
from craftcache import Client
from craftcache.daemon.transport import Call
from craftcache.loading.loader import Loader
from craftcache.sources import FILENAMES, parse


def main(socket_dir: Path, uid: int) -> None:
    if uid != os.getuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    nowhere = socket_dir / "no-cache"
    with Client(socket_dir=socket_dir, cache_dir=nowhere, fallback="none") as client:
        export = client.load("org/model")
    loader = Loader(socket_dir=socket_dir, cache_dir=nowhere, fallback="none")
    names = tuple(FILENAMES.values())
    with loader.open(parse("org/model"), names, Call()) as opened:
        files = zip(names, opened.files, strict=True)
        descriptors = {name: file.descriptor for name, file in files}
        result = {
            "served_by": export.served_by,
            "keys": sorted(export.lm),
            "sha256": {name: digest(descriptor) for name, descriptor in descriptors.items()},
            "writing": {name: reopened(descriptor) for name, descriptor in descriptors.items()},
        }
    print(json.dumps(result))


def digest(descriptor: int) -> str:
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    return hashlib.sha256(content).hexdigest()


def reopened(descriptor: int) -> str:
    """What comes of opening the file anew for writing, by any way that truncates or writes."""
    outcomes = set()
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        try:
            os.close(os.open(f"/proc/self/fd/{descriptor}", flags))
        except OSError as error:
            outcomes.add(errno.errorcode[error.errno or 0])
        else:
            outcomes.add("opened")
    return "/".join(sorted(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
