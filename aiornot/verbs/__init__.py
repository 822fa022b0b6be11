"""What ``aiornot VERB`` does. Each verb imports what it needs when it runs."""
