"""Which chips to cut, and which of them to train, validate and test on."""
