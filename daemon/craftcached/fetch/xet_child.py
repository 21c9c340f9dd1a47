"""A process that fetches one file of a Xet repository by huggingface_hub's own client.

Reads one line of JSON from standard input (the file's URL, the headers for the Hub, the path and
the size), writes the file, and prints how many bytes are there whenever that changes. It ends
when its standard input does, so that it never outlives the daemon. Whatever goes wrong here, the
daemon fetches the file by plain HTTP instead.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from huggingface_hub.file_download import get_hf_file_metadata, xet_get

TELL_SECONDS = 0.5


def main() -> None:
    """Fetch what standard input names."""
    request = json.loads(sys.stdin.readline())
    path = Path(request["path"])
    path.touch(mode=0o600)
    threading.Thread(target=_end_with_the_daemon, daemon=True).start()
    threading.Thread(target=_tell_growth, args=(path,), daemon=True).start()
    metadata = get_hf_file_metadata(request["url"], token=False, headers=request["headers"])
    if metadata.xet_file_data is None:
        raise SystemExit("the Hub does not keep this file in Xet storage")
    xet_get(
        incomplete_path=path,
        xet_file_data=metadata.xet_file_data,
        headers=request["headers"],
        expected_size=request["size"],
    )


def _end_with_the_daemon() -> None:
    sys.stdin.read()
    os._exit(1)


def _tell_growth(path: Path) -> None:
    told = -1
    pause = threading.Event()
    while not pause.wait(TELL_SECONDS):
        present = path.stat().st_blocks * 512
        if present != told:
            told = present
            print(present, flush=True)  # noqa: T201  # what the daemon reads


if __name__ == "__main__":
    main()
