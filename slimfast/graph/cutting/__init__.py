"""What a cut makes of a network: the slices that stay, the attributes that follow, the shapes that result."""
