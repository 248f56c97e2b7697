"""The stream files that come with Unmask, and how a stream is named: by a path or a shipped name."""
