"""Which pod of the cluster this process runs in."""

import os
import socket
from pathlib import Path

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def name() -> str:
    """The pod's name, from Kubeflow: the host's ends after 63 characters, which the pods of Argo pass."""
    return os.environ.get("KFP_POD_NAME") or socket.gethostname()


def namespace() -> str:
    """The namespace of the pod's account; "default" without one."""
    return NAMESPACE.read_text(encoding="utf-8").strip() if NAMESPACE.is_file() else "default"
