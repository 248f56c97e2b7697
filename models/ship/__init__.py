"""Model artifacts: ONNX graphs, files with a manifest, the MLflow registry."""
