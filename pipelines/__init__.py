"""The data plane: from bytes on Kafka to scored, explained alerts. Knows no torch, MLflow or Prefect.

errors.py     every error a user can cause, as one tree
stream.py     the stream file: fields, entities, labels, features, alert budget
contract.py   bytes -> an event, a label, or a refusal with the rule's name
records.py    record batches -> records, past everything in them that cannot be read
connection.py how a client of Kafka is opened, and what its errors mean
broker.py     Kafka, with the two above the only files with a client: topics, reader, writer, guarded transactions
lake.py       Delta tables, the only file with deltalake: events, labels, scores, refused
ingest.py     Kafka -> lake, exactly once
order.py      the one order: merging partitions by arrival
plan.py       the stream's window features -> panes and memory layout; their digest
kernel.py     the compiled fold of one entity column
features.py   window features: ONE definition for replay and live
state.py      the fold: duplicates, labels, windows -> one row of features per event; snapshot, restore
training.py   the lake folded again in the one order; the training table as of a time
alerts.py     what is published: scores, alerts, dead letters, progress
replica.py    one order -> contract -> fold -> what each outbox gets; restarts; no broker
outbox.py     rows of one partition between fold and publication
lane.py       the guarded transactions that empty an outbox
takeover.py   fence whoever scored before, learn how far it came, find a state that agrees
scorer.py     the live loop: read -> replica -> lanes; snapshots
faults.py     crash as a test input
rebuild.py    a snapshot made from the lake
recover.py    what keeps a scorer from starting, and the way on
audit.py      reconcile (in = scored + refused + duplicates) and the skew audit
simulate.py   a synthetic payment stream with fraud; a folder of past events
replay.py     the producer of a replay, with its own clock
"""
