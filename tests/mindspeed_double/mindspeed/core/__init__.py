"""What the features put there."""
