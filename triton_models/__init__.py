"""The model repository that Triton serves: from a weights folder to ONNX graphs, TensorRT plans and configurations."""
