"""The site that is measured: plain handlers that record one effect for each message."""
