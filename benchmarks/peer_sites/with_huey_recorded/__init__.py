"""The site on Huey and its SQLite storage, with a record of each message that was sent and of each that arrived."""
