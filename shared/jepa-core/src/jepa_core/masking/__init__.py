"""Masks: which tokens are context, which are targets.

Every sampler is a frozen dataclass of settings, one per geometry (`span`: runs along a sequence,
`subset`: any members of a set, `multiblock`: rectangles on a grid), and is called alike:

    context, targets = sampler(samples, counters, step=step, seed=seed)

samples   int64 [batch], global ids of the records;
counters  int or int64 [batch], the visit of each record;
step      global step: sizes shared by the batch come from (seed, "sizes", step);
seed      the run's seed: everything else comes from (seed, "mask", sample, counter).

It draws the whole batch at once on the CPU and returns two `IndexSet`s. It is a pure function of
its arguments; a sample's mask does not depend on its neighbours. With several target blocks,
`targets` is target-major like `IndexSet.expand_targets`: row p * batch + b. `MultiBlockSampler`,
whose contexts can be several, returns a list of their `IndexSet`s, and int64 targets
[targets, batch, cells], all of one length.
Import samplers from their modules: `from jepa_core.masking.span import RunSampler`.
"""
