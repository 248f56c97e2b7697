"""From a file to a stream file, a check and a report, without any server: `unmask init`, `check` and `try`."""
