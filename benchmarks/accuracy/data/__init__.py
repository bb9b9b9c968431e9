"""The data sets of the accuracy studies."""
