"""The errors that are answers to a user: each names what was found, what was expected and what to do."""


class LongseqError(Exception):
    """Base of the errors whose message alone is the answer; the command line prints it without a traceback."""


class DataError(LongseqError, ValueError):
    """A file, line or record cannot be used as it is."""


class ConfigError(LongseqError, ValueError):
    """An option, or a combination of options, makes no sense."""


class CheckpointError(LongseqError, ValueError):
    """A model folder or checkpoint cannot be loaded into the model that was asked for."""
