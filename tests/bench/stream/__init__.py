"""The live scorer beside its peers on one real broker, each in a process of its own that measures its own CPU time."""
