"""What leaves the training: ONNX, files under a manifest, the registry."""
