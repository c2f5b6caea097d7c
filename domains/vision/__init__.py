"""Images and videos as long sequences: pixels, patches and tubelets; classification, pixel models, masked patches."""
