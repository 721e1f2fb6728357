"""Qwen2.5-Omni (arXiv 2503.20215): a model that reads, sees and hears."""
