"""Checkpoints put together opcode by opcode, as no pickler would write them."""

from __future__ import annotations

import io
import pickle
import zipfile


def archive(pickled: bytes, *, storage: bytes = bytes(64), **records: bytes) -> bytes:
    """A checkpoint with that pickle and one storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data/0", storage)  # first, so that it is aligned
        for name, content in {"data.pkl": pickled, "version": b"3\n", **records}.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


class Op:
    """Pieces of pickles that no pickler would write."""

    START = b"\x80\x02"
    STOP = b"."

    @staticmethod
    def name(path: str) -> bytes:
        module, _, name = path.rpartition(".")
        return f"c{module}\n{name}\n".encode()

    @staticmethod
    def value(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    @classmethod
    def call(cls, path: str, *arguments: bytes) -> bytes:
        return cls.name(path) + b"(" + b"".join(arguments) + b"tR"

    @classmethod
    def storage(cls, key: object = "0", count: object = 16, kind: str = "FloatStorage") -> bytes:
        values = cls.value("storage") + cls.name(f"torch.{kind}")
        return b"(" + values + cls.value(key) + cls.value("cpu") + cls.value(count) + b"tQ"

    @classmethod
    def tensor(
        cls,
        storage: bytes | None = None,
        offset: object = 0,
        shape: object = (16,),
        stride: object = (1,),
    ) -> bytes:
        view = cls.value(offset) + cls.value(shape) + cls.value(stride) + cls.value(False)
        hooks = cls.call("collections.OrderedDict")
        return cls.call("torch._utils._rebuild_tensor_v2", storage or cls.storage(), view, hooks)

    @classmethod
    def whole(cls, *pieces: bytes) -> bytes:
        return cls.START + b"".join(pieces) + cls.STOP
