"""Contract tests for members of other packages: `python -m ablate.testing PACKAGE` runs them; see `suite`."""
