"""Jobs: a region and a period, planned, quoted, run block by block, resumed."""
