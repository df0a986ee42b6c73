"""What the `align` command looks into: lineage, this machine, unfinished work. No stage imports it."""
