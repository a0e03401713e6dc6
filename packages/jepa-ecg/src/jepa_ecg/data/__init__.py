"""Electrocardiograms from files: one module a format, and the corpus they become."""
