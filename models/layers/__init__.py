"""Building blocks of the networks, each fast kernel beside the slow oracle that it is held to."""
