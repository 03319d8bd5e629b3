"""Real ONNX models for tests: `fetch.py` brings them, `models.yaml` pins them."""
