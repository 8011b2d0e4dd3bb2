"""From a cube and a model to results: `check` refuses, `kernel` computes one block, `blocks` spreads it over Dask."""
