"""Images: files, layouts, corpora."""
