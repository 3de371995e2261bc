"""The processes that a test's own process has started."""

import psutil


def running_children() -> list[int]:
    """Ids of those that run; one that has ended may not have been waited for yet.

    Python's own resource tracker and fork server stay until the process ends, and are left out.
    """
    running = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
        and not any(own in word for word in child.cmdline() for own in ("resource_tracker", "forkserver"))
    ]
    return [child.pid for child in running]
