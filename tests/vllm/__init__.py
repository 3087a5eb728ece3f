"""Tests that need vLLM: `make test-vllm`, in a virtual environment of their own; the default suite leaves them out."""
