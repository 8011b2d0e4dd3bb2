"""What climate services make of maps: areas with their uncertainty."""
