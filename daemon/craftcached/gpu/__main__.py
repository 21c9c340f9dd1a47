"""``craftcached-gpu``: runs the service of one GPU in the foreground, logging to stderr."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from craftcache.device.cuda_driver import CudaDriver, CudaFailed, NoCudaDriver
from craftcache.version import VERSION
from craftcached.options import settings_options
from craftcached.program import running_program
from craftcached.settings_reading import load_settings
from craftcached.systemd import Notifier

from .cuda_memory import CudaMemory
from .process import run

__all__ = ["main"]

SETTINGS = ("socket_dir", "gpu_ttl", "gpu_max_bytes", "worker_socket_mode", "max_clients_per_uid")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
@click.option(
    "--device",
    metavar="INDEX|UUID",
    help="The GPU, by its index in the order of the PCI bus, as nvidia-smi lists them, or by its "
    "UUID. Default: the first that CUDA_VISIBLE_DEVICES leaves.",
)
@click.option(
    "--config", "config_file", type=Path, help="Configuration file, instead of its usual places."
)
@settings_options(SETTINGS)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def main(device: str | None, config_file: Path | None, log_level: str, **arguments: object) -> None:
    """Hold models in a GPU's memory, one copy for all workers that load with share=True.

    Settings are read as craftcached reads them, which must run on this machine too.
    """
    given = {name: value for name, value in arguments.items() if value not in (None, ())}
    if device is not None:  # before the driver is first asked
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with running_program(log_level, failing="ended", expected=(NoCudaDriver, CudaFailed)):
        settings = load_settings(given, config_file=config_file)
        memory = CudaMemory(CudaDriver.load())
        asyncio.run(run(memory, settings, Notifier.of(os.environ)))


if __name__ == "__main__":
    main()
