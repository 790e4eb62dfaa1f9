"""What each device offers to preprocess, one module a device."""
