"""The site on Huey and its SQLite storage."""
