"""What every joint-embedding predictive architecture shares.

The rooms from the ground up: `errors`, `config`, `progress`, `rng`, `tokens`, `attention`,
`losses`, `ema`, `schedules`, `optim`, `domain`, `masking`, `layers`, `run`, `hub`, `download`,
`health`, `training`, `report`, `evaluation`, `doctor`, `cli`. Each is imported by name; this
package imports none of them by itself.
"""
