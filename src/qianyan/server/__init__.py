"""The engine behind HTTP: OpenAI's and Bailian's dialects for clients that nobody here wrote."""
