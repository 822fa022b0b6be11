"""aiornot: tune a detector of AI-generated images, from parquet to a delivered model."""

__version__ = "0.1.0"
