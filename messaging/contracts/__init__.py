"""What messages hold: types of payloads and their versions, what a site publishes, and the document of both."""
