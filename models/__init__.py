"""The learning; knows no Kafka, Delta or Prefect.

columns.py    what a model input is, and a table of rows in time order
cells.py      raw columns -> scaled cells: one numpy definition for training and serving
masking.py    which columns are hidden together, and in which passes
encoder.py    the network: pieces -> trunk, with a linear skip
surprise.py   surprises of the fields -> one label-free score
pretrain.py   self-supervised training: predict hidden fields
head.py       risk networks on top of cells and surprises; the whole scoring network
finetune.py   few or many labels -> a calibrated model with a threshold
calibrate.py  alert budgets, thresholds, scores in [0, 1]
rules.py      everything fitted that is not a network: logits and surprises -> score
explain.py    reasons from the mask, and counterfactual scores
graph.py      the networks as ONNX
artifact.py   what ships: safetensors + ONNX + JSON, hashed
detector.py   scikit-learn style estimator over all of it
baselines.py  isolation forest and logistic regression: the bar
registry.py   MLflow (the only file with mlflow)
errors.py     every error of the learning that a user can mend
plots.py      what the MLflow runs show
"""
