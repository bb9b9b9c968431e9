"""The networks of the accuracy studies."""
