"""`mindspeed-moe demo`."""


def demo() -> int:
    """To be written."""
    return 0
