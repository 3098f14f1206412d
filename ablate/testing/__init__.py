"""Contract tests for what other packages can add: `python -m ablate.testing PACKAGE` runs them; see `suite`."""
