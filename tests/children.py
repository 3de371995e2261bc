"""The processes that a test's own process has started."""

import psutil


def running_children() -> list[int]:
    """Ids of those that run; one that has ended may not have been waited for yet.

    Python's own resource tracker stays until the process ends, and is left out.
    """
    running = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
        and not any("resource_tracker" in word for word in child.cmdline())
    ]
    return [child.pid for child in running]
