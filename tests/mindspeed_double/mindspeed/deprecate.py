"""What keeps an import from patching."""


class AutoExecuteFunction:
    AUTO_EXECUTE = True

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs) if AutoExecuteFunction.AUTO_EXECUTE else None


class NoExecuteFunction:
    def __enter__(self):
        AutoExecuteFunction.AUTO_EXECUTE = False

    def __exit__(self, *unused):
        AutoExecuteFunction.AUTO_EXECUTE = True
