"""What a batch is, in which order, how it is spelled on the wire, and who makes which part of it."""
