"""Imported as `longseq.pipelines` only: under its bare name every class in it would exist twice."""

if __name__ != "longseq.pipelines":
    raise ImportError("import longseq.pipelines, not pipelines: the folder is part of the package longseq")
