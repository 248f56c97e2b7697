"""Stream files included with Unmask, and the lookup of a stream by path or name."""
