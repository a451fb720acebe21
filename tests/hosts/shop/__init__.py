"""The app that is added to each host: it publishes, handles, and looks at what came of it."""
