"""The names that a checkpoint's pickle may use: torch's own weights-only list, and ours.

The list is that of torch 2.13. Dtypes are named as in the module torch.
"""

from __future__ import annotations

import _compat_pickle
from typing import Final

from craftcache.checkpoint.index import ITEM_BYTES

__all__ = [
    "ALLOWED_GLOBALS",
    "DTYPE_BYTES",
    "GRADIENT_PREFIXES",
    "OMEGACONF_CLASSES",
    "PARAMETER",
    "QUANTIZATION_SCHEMES",
    "STORAGE_DTYPES",
    "TENSOR_CLASSES",
    "UNTYPED_STORAGE",
    "full_name",
]

OMEGACONF_CLASSES: Final = (
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
)
"""The parts of an OmegaConf config, which MBD and AudioSeal checkpoints hold."""

ALLOWED_GLOBALS: Final = (
    "builtins.dict",
    "builtins.int",
    "builtins.list",
    "collections.defaultdict",
    "typing.Any",
    *OMEGACONF_CLASSES,
)
"""Globals that a checkpoint may name beyond torch's own list: those of an OmegaConf config."""

DTYPE_BYTES: Final[dict[str, int]] = {
    **ITEM_BYTES,
    **dict.fromkeys(("qint8", "quint8", "quint4x2", "quint2x4", "float4_e2m1fn_x2"), 1),
    **dict.fromkeys((f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)), 1),
    **dict.fromkeys(("bits8", "bits1x8", "bits2x4", "bits4x2"), 1),
    "bits16": 2,
    "qint32": 4,
}
"""Every dtype, with its size in bytes; an index holds fewer."""

GRADIENT_PREFIXES: Final = ("float", "bfloat", "complex")
"""How the names of those dtypes begin of which a tensor may require a gradient."""

QUANTIZATION_SCHEMES: Final = (
    "torch.per_channel_affine",
    "torch.per_channel_affine_float_qparams",
    "torch.per_channel_symmetric",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
)

PARAMETER: Final = "torch.nn.parameter.Parameter"

UNTYPED_STORAGE: Final = "torch.storage.UntypedStorage"

_CPU_AND_CUDA: Final = {
    "BFloat16": "bfloat16",
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "Int": "int32",
    "Long": "int64",
    "Short": "int16",
}
_CPU_AND_CUDA_STORAGE: Final = {"ComplexDouble": "complex128", "ComplexFloat": "complex64"}
_CPU_STORAGE: Final = {
    "QInt32": "qint32",
    "QInt8": "qint8",
    "QUInt2x4": "quint2x4",
    "QUInt4x2": "quint4x2",
    "QUInt8": "quint8",
}

STORAGE_DTYPES: Final[dict[str, str]] = {
    **{
        f"torch.{place}{name}Storage": dtype
        for place in ("", "cuda.")
        for name, dtype in {**_CPU_AND_CUDA, **_CPU_AND_CUDA_STORAGE}.items()
    },
    **{f"torch.{name}Storage": dtype for name, dtype in _CPU_STORAGE.items()},
    UNTYPED_STORAGE: "uint8",
}
"""The classes of storages, with the dtype of their elements."""

TENSOR_CLASSES: Final = frozenset(
    f"torch.{place}{name}Tensor"
    for place in ("", "cuda.", "sparse.", "cuda.sparse.")
    for name in _CPU_AND_CUDA
    if name != "Bool" or "sparse" not in place
) | {"torch.Tensor"}


def full_name(module: str, name: str) -> str:
    """What a pickle names, in one word; names of Python 2 become those of Python 3."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    else:
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"
