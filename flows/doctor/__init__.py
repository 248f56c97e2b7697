"""`unmask doctor`: what is reachable, versions, topics, memory, CPU; what is wrong and the command that fixes it."""
