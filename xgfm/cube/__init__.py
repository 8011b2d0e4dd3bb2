"""From a catalogue to a cube: search, items, loaders, mask, composite; and seasons simulated for tests and examples."""
