"""`mindspeed-moe bench`."""


def bench() -> int:
    """To be written."""
    return 0
