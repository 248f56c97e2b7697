"""The live scorer: from the merged input to published scores, and its take-over and recovery."""
