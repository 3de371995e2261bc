"""Graphs of the steps for Kubeflow Pipelines."""
