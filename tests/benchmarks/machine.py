"""What a measurement was made on, and how much memory it took."""

import os
import platform
from pathlib import Path


def machine_line() -> str:
    """Processor, cores that this process may use, memory, Python."""
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in described.splitlines() if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = models[0] if models else platform.processor() or platform.machine()
    return (
        f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def peak_mb() -> float:
    """Most memory that this process held at a time, MiB."""
    # not ru_maxrss, which a child takes over from the process that starts it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
