"""The live scorer: from the merged input to published scores, with take-over and recovery."""
