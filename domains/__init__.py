"""Imported as `longseq.domains` only: under its bare name every class in it would exist twice."""

if __name__ != "longseq.domains":
    raise ImportError("import longseq.domains, not domains: the folder is part of the package longseq")
