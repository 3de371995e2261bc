"""The CrossEarth network: torch only, knows no files and no tracking."""
