"""Where it runs: the `jumok` command."""
