"""Audio and speech: people's recordings in, classes, tags, transcripts, frame labels, numbers or more sound out."""
