"""One file per backbone; the file name is the registry name."""
