"""Sites that others made, with this package put into them as the docs say."""
