"""Schemas of events, labels and published messages, and the rules that events must keep."""
