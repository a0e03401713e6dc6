"""Tables: reading files, the six public tables, and the memory-mapped corpus."""
