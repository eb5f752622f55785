"""Makes the servers of `tests/servers` available to every test folder."""

pytest_plugins = ["tests.servers.plugin"]
