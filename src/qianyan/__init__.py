"""qianyan (千眼): Qwen's multimodal models, self-hosted, for safety inspection."""

__version__ = "0.1.0"
