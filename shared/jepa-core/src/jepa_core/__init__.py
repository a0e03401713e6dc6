"""What every joint-embedding predictive architecture shares.

The rooms, from the ground up: `rng`, `tokens`, `masking`, `attention`, `layers`, `losses`, `ema`,
`schedules`, `optim`, `config`, `errors`, `run`, `hub`, `health`, `training`, `evaluation`, `report`,
`domain`, `cli`. Each is imported by name; this package imports none of them by itself.
"""
