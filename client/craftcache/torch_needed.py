"""That torch, which the base install leaves to its worker, is there when tensors are asked for."""

from __future__ import annotations

from .errors import CraftcacheError

__all__ = ["require_torch"]


def require_torch() -> None:
    """Import torch.

    Raises:
        CraftcacheError: It is not installed.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise CraftcacheError(
            "torch is not installed here, and tensors need it",
            hint="pip install 'craftcache[torch]'",
        ) from error
