"""The compute plane: workers, their engines, the models that ship and how those were made."""
