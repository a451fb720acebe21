"""What messages hold: types of payloads and their upgrades, what a site publishes, and documents of both."""
