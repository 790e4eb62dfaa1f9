"""Nothing but the adaptor."""
