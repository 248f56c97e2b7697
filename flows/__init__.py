"""The wiring: Prefect flows, settings, local servers, the command line. Knows both pipelines and models.

cli.py            the `unmask` command
settings.py       the environment, read once
processes.py      a local server as a child process: state file, log, health, stop by its own pid
kafka_server.py   a Kafka broker for this machine
servers.py        MLflow and Prefect for this machine
training_data.py  the lake's training table as the models want it
ingest.py         flow: Kafka -> lake
pretrain.py       flow: lake -> masked-feature encoder
finetune.py       flow: encoder + labels -> head, baselines, a challenger in the registry
promote.py        flow: gate -> champion
backtest.py       flow: champion and baselines on a period that nobody trained on
serve.py          the live scorer as a plain service, no Prefect
follow.py         following scores and alerts; showing an alert; sending a label
demo.py           the whole loop on this machine
kafka_jars.py     Kafka's jars and a Java for them
lineage.py        the tags that every MLflow run and model version carries
progress.py       progress on a terminal, in a log, on the Prefect page
streams/          the stream files shipped: payments (simulated), handbook (card payments)
"""
