"""Tables of texts and labels: reading, checking and encoding them."""
