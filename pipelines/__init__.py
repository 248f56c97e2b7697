"""The data plane: from bytes on Kafka to scored, explained alerts. Knows no torch, MLflow or Prefect.

errors.py     every error a user can cause, as one tree
stream.py     the stream file: fields, entities, labels, features, alert budget
contract.py   bytes -> an event, a label, or a refusal with the rule's name
broker.py     Kafka, the only file with a client: topics, reader, writer, guarded transactions
lake.py       Delta tables, the only file with deltalake: events, labels, scores, refused
order.py      the one order: merging partitions by arrival
features.py   window features: ONE compiled kernel for replay and live
state.py      the fold: duplicates, labels, windows -> one row of features per event; snapshot, restore
alerts.py     what is published: scores, alerts, dead letters, progress
scorer.py     fold -> outbox -> lanes: the live loop
audit.py      reconcile (in = scored + refused + duplicates) and the skew audit
training.py   the training table, as of a time
simulate.py   a synthetic payment stream with fraud; replay of a folder
"""
