"""Contract tests for what other packages can add; each says in one line of an assertion what does not hold."""
