"""The processes that a test's own process has started."""

import psutil


def running_children() -> list[int]:
    """Ids of those that run; one that has ended may not have been waited for yet."""
    children = psutil.Process().children(recursive=True)
    return [each.pid for each in children if each.status() != psutil.STATUS_ZOMBIE]
