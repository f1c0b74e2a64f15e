"""The demo page of `hcal demo`."""
