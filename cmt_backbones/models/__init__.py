"""What is computed: the two networks, and what they are made of."""
