"""What a domain is, and its pixels."""
