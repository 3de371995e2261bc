"""The CrossEarth network and its checkpoints: knows no scenes, no steps and no tracking."""
